"""Golden scores of a real cross-encoder, by transformers.

    python reranker.py ONNX_FOLDER OUT_FOLDER > reranker.json

ONNX_FOLDER holds model.onnx (a BERT of 4 layers and 256 wide whose matrices are int8) and tokenizer.json. The weights
are dequantised into OUT_FOLDER, a BertForSequenceClassification of one label: the two labels' softmax is the sigmoid
of their difference, so that the difference of their rows is the one label. Scores are those of the texts that
TEMPLATE makes of a pair, and of the pairs as BERT takes them (token types 0 and 1).

Made with transformers 5.24, sentence-transformers 6.2, onnx 1.23 (pip install torch transformers
sentence-transformers onnx).
"""

import json
import os
import shutil
import sys

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from sentence_transformers import CrossEncoder
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedTokenizerFast

TEMPLATE = "Query: {query}\nSentence: {document}"
LONGEST = 512
PAIRS = {
    "How many volts does a circuit breaker of the MCB series take?": [
        "The miniature circuit breakers of the MCB series are rated for 230/400 V AC and 6 kA.",
        "A circuit breaker switches off by itself when too much current flows.",
        "Our canteen serves lunch from half past eleven to two.",
        "Voltage is measured between two points of a circuit.",
        "The MCB series is available with one to four poles and in curves B, C and D.",
    ],
    "What is the capital of France?": [
        "Paris is the capital and the largest city of France.",
        "France is a country in Western Europe.",
        "Berlin is the capital of Germany.",
        "Copper melts at 1085 degrees Celsius.",
        "The capital of a company is what its owners paid in.",
    ],
    "why do cats purr": [
        "Cats purr when they are content, and also to calm themselves when they are hurt.",
        "Dogs bark at strangers, at the post and at each other.",
        "The purr of a cat comes from the muscles of its larynx.",
        "A purring engine is one that runs smoothly.",
        "",
    ],
    "Which cable is allowed outdoors?": [
        "NYY-J may be laid in the ground and outdoors, unlike NYM-J, which needs protection from the sun.",
        "Cables are sold by the metre or in drums of 500 m.",
        "Für die Verlegung im Freien ist NYY-J zugelassen.",
        "outdoors " * 700,
        "The warranty does not cover damage by moisture.",
    ],
}


def weights(graph):
    """Every parameter as f32 under its name in Hugging Face's files."""
    tensors = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    out = {name: array for name, array in tensors.items() if name.startswith(("bert.", "classifier.")) and array.dtype == np.float32}
    out = {name: array for name, array in out.items() if not name.endswith("_scale")}

    def dequantised(name):
        scale, zero = tensors[f"{name}_scale"], tensors[f"{name}_zero_point"]
        codes = tensors[f"{name}_quantized"].astype(np.float32)
        return (codes - zero.astype(np.float32)) * scale

    for part in ("word", "token_type", "position"):
        out[f"bert.embeddings.{part}_embeddings.weight"] = dequantised(f"bert.embeddings.{part}_embeddings.weight")
    for node in graph.node:
        if node.op_type != "MatMulInteger":
            continue
        name = node.input[1].removesuffix("_quantized")
        if name.startswith(("bert.pooler", "classifier")):
            out[name] = dequantised(name).T
        elif name.startswith("onnx::MatMul"):
            # The node's path is the module's: /bert/encoder/layer.0/attention/self/query/MatMul_quant.
            path = node.output[0].strip("/").split("/MatMul")[0].replace("/", ".")
            out[f"{path}.weight"] = dequantised(name).T
    rows, bias = out["classifier.weight"], out["classifier.bias"]
    out["classifier.weight"], out["classifier.bias"] = rows[1:] - rows[:1], bias[1:] - bias[:1]
    return out


def convert(source, out):
    os.makedirs(out, exist_ok=True)
    model = onnx.load(f"{source}/model.onnx")
    config = BertConfig(vocab_size=30522, hidden_size=256, num_hidden_layers=4, num_attention_heads=4,
                        intermediate_size=1024, max_position_embeddings=LONGEST, num_labels=1)
    net = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").to(torch.float32)
    state = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in weights(model.graph).items()}
    missing, unexpected = net.load_state_dict(state, strict=False)
    assert not unexpected and not [name for name in missing if "position_ids" not in name], (missing, unexpected)
    net.save_pretrained(out)
    shutil.copyfile(f"{source}/tokenizer.json", f"{out}/tokenizer.json")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=f"{out}/tokenizer.json", cls_token="[CLS]", sep_token="[SEP]",
                                        pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]",
                                        model_max_length=LONGEST, model_input_names=["input_ids", "token_type_ids", "attention_mask"])
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.save_pretrained(out)
    return net.eval(), tokenizer


def main():
    net, tokenizer = convert(*sys.argv[1:])
    cross = CrossEncoder(sys.argv[2], max_length=LONGEST)
    rows = []
    for query, documents in PAIRS.items():
        for document in documents:
            row = {"query": query, "document": document}
            text = TEMPLATE.replace("{query}", query).replace("{document}", document)
            for kind, args in {"single": (text,), "pair": (query, document)}.items():
                # Lists: of two texts alone, an empty second one would be taken for none.
                inputs = tokenizer(*([text] for text in args), truncation="longest_first", max_length=LONGEST, return_tensors="pt")
                with torch.no_grad():
                    logit = float(net(**inputs).logits[0, 0])
                row[kind] = {"tokens": inputs["input_ids"].shape[1], "logit": float(f"{logit:.7g}")}
            score = float(cross.predict([(query, document)])[0])
            assert abs(score - 1 / (1 + np.exp(-row["pair"]["logit"]))) < 1e-5, row
            rows.append(row)
    json.dump({"generator": "reranker.py", "template": TEMPLATE, "rows": rows}, sys.stdout, indent=1, ensure_ascii=False)


if __name__ == "__main__":
    main()
