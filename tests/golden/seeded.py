"""Logits and embeddings of small models with seeded weights by transformers: the golden of `tests/seeded.rs`.

    python seeded.py > seeded.json          (transformers 5.x, torch 2.x, CPU, f32, eager attention)

The weights follow from a tensor's name and an element's index alone (`value` below, the same in `tests/support`), so
that no file has to be kept: Rust writes the same folders and must get the same numbers from them.
"""

import json
import sys

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

DECODER = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
           "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 128, "max_position_embeddings": 64,
           "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 10000.0, "bos_token_id": 1, "eos_token_id": 2,
           "tie_word_embeddings": False}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
DECODERS = {
    "mixtral": {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 8,
                "num_experts_per_tok": 2, "sliding_window": None},
    "mistral_window": {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 12},
    "llama3_tied_biased": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_scaling": LLAMA3,
                           "tie_word_embeddings": True, "attention_bias": True},
    "llama_yarn": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_scaling": YARN},
    "llama_linear": {"architectures": ["LlamaForCausalLM"], "model_type": "llama",
                     "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "llama_dynamic": {"architectures": ["LlamaForCausalLM"], "model_type": "llama",
                      "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
}
# transformers' base grows with the text; Tarn's is the one of the longest context, so only there both agree.
LENGTHS = {"llama_dynamic": (128,)}
ENCODER = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
           "vocab_size": 128, "max_position_embeddings": 66, "type_vocab_size": 2, "hidden_act": "gelu",
           "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
ENCODERS = {
    "bert_mean": {"architectures": ["BertModel"], "model_type": "bert", "layer_norm_eps": 1e-12, "pad_token_id": 0},
    "xlmr_cls": {"architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta", "layer_norm_eps": 1e-5,
                 "pad_token_id": 1, "type_vocab_size": 1},
}


def value(name, count):
    """`count` numbers in [-0.5, 0.5): a counter hash over the tensor's name, exact in f32."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    with np.errstate(over="ignore"):
        z = (np.arange(count, dtype=np.uint64) + np.uint64(seed)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    return ((z >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)) - np.float32(0.5)


def tensor(name, shape):
    """Matrices spread over +-0.25, scales over 1 +- 0.125, biases over +-0.125."""
    x = value(name, int(np.prod(shape)))
    if len(shape) > 1:
        x = x * np.float32(0.5)
    elif name.endswith("bias"):
        x = x * np.float32(0.25)
    else:
        x = np.float32(1) + x * np.float32(0.25)
    return torch.from_numpy(x.reshape(shape).copy())


def fill(model):
    """Gives every parameter its seeded value under the name that the hub's files use."""
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            # transformers keeps the experts fused: gate_up_proj [E, 2I, H] and down_proj [E, H, I].
            layer = name.split(".experts.")[0].replace(".mlp", ".block_sparse_moe")
            for expert in range(parameter.shape[0]):
                of = lambda w, shape: tensor(f"{layer}.experts.{expert}.{w}.weight", shape)
                inner, hidden = 96, 64
                if name.endswith("gate_up_proj"):
                    parameter.data[expert] = torch.cat([of("w1", (inner, hidden)), of("w3", (inner, hidden))])
                else:
                    parameter.data[expert] = of("w2", (hidden, inner))
            continue
        hub = name.replace(".mlp.gate.weight", ".block_sparse_moe.gate.weight") if "proj" not in name else name
        parameter.data = tensor(hub, tuple(parameter.shape))
    return model.eval()


def prompt(length):
    return [(7 + at * 29) % 125 + 3 for at in range(length)]


def main():
    out = {"generator": "seeded.py", "decoders": {}, "encoders": {}}
    for name, extra in DECODERS.items():
        folder = {**DECODER, **extra}
        config = AutoConfig.for_model(**folder)
        model = fill(AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(torch.float32))
        rows = []
        for length in LENGTHS.get(name, (5, 17, 40)):
            with torch.no_grad():
                logits = model(torch.tensor([prompt(length)])).logits[0, -1]
            rows.append({"ids": prompt(length), "logits": [float(f"{x:.7g}") for x in logits.tolist()]})
        out["decoders"][name] = {"config": folder, "rows": rows}
    for name, extra in ENCODERS.items():
        folder = {**ENCODER, **extra}
        model = AutoModel.from_config(AutoConfig.for_model(**folder), attn_implementation="eager", add_pooling_layer=False)
        model = fill(model.to(torch.float32))
        rows = []
        for length in (3, 20, 50):
            with torch.no_grad():
                states = model(torch.tensor([prompt(length)])).last_hidden_state[0]
            vector = states[0] if name.endswith("cls") else states.mean(0)
            vector = torch.nn.functional.normalize(vector, dim=0)
            rows.append({"ids": prompt(length), "vector": [float(f"{x:.7g}") for x in vector.tolist()]})
        out["encoders"][name] = {"config": folder, "rows": rows}
    json.dump(out, sys.stdout, separators=(",", ":"))


if __name__ == "__main__":
    main()
