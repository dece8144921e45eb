"""Golden logits of small cross-encoders whose weights follow from their names, by transformers.

    python reranker_seeded.py > reranker_seeded.json

Weights as in seeded.py; the names are those without the whole model's prefix. Made with transformers 5.24.
"""

import json
import sys

import torch
from seeded import ENCODER, prompt, tensor
from transformers import AutoConfig, AutoModelForSequenceClassification

MODELS = {
    "bert": {"architectures": ["BertForSequenceClassification"], "model_type": "bert", "layer_norm_eps": 1e-12,
             "pad_token_id": 0},
    "xlmr": {"architectures": ["XLMRobertaForSequenceClassification"], "model_type": "xlm-roberta",
             "layer_norm_eps": 1e-5, "pad_token_id": 1, "type_vocab_size": 1},
}


def main():
    out = {"generator": "reranker_seeded.py", "models": {}}
    for name, extra in MODELS.items():
        folder = {**ENCODER, **extra, "id2label": {"0": "LABEL_0"}}
        config = AutoConfig.for_model(**folder)
        config.id2label = {0: "LABEL_0"}
        model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").to(torch.float32)
        for parameter_name, parameter in model.named_parameters():
            bare = parameter_name.removeprefix("bert.").removeprefix("roberta.")
            parameter.data = tensor(bare, tuple(parameter.shape))
        model.eval()
        rows = []
        for length, second in ((3, 3), (20, 11), (50, 7)):
            # Two texts: the second begins at `second`; models with one type have only that one.
            types = [int(at >= second and folder["type_vocab_size"] > 1) for at in range(length)]
            with torch.no_grad():
                logit = model(torch.tensor([prompt(length)]), token_type_ids=torch.tensor([types])).logits
            assert logit.shape == (1, 1)
            rows.append({"ids": prompt(length), "types": types, "logit": float(f"{float(logit):.7g}")})
        out["models"][name] = {"config": folder, "rows": rows}
    json.dump(out, sys.stdout, separators=(",", ":"))


if __name__ == "__main__":
    main()
