"""A small random Mixtral (seeded, sharded, hub tensor names) and its logits by transformers.

    python mixtral_logits.py OUT_FOLDER > mixtral_logits.json

(transformers 5.24.0, torch 2.15.0, numpy 2.4.6, safetensors 0.8.0; CPU, f32, eager attention, eager experts)

Writes the folder first: 8 experts, top 2, 8 heads over 2 kv heads, 4 shards with an index, a 512-piece byte-level
tokenizer; the weights come from numpy's generator, not from transformers' initialisation, so they do not depend on
its version. Then prints, for 3 prompts, the logits of the last position (7 significant digits) and, for every
position, the argmax and the gap between the two largest logits.
"""

import json
import os
import sys

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM

SEED, SHARD_BYTES = 20240607, 2_500_000
CONFIG = {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "vocab_size": 512, "hidden_size": 128,
    "intermediate_size": 224, "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 2,
    "head_dim": 16, "num_local_experts": 8, "num_experts_per_tok": 2, "hidden_act": "silu",
    "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 1000000.0, "sliding_window": None,
    "attention_dropout": 0.0, "initializer_range": 0.2, "output_router_logits": False, "router_aux_loss_coef": 0.02,
    "router_jitter_noise": 0.0, "tie_word_embeddings": False, "use_cache": True, "bos_token_id": 1,
    "eos_token_id": 2, "torch_dtype": "float32",
}


def weights():
    """Every tensor under the hub's name, in the hub's order; matrices N(0, 0.2), norms 1 + N(0, 0.1)."""
    rng = np.random.default_rng(SEED)
    hidden, inner, kv = CONFIG["hidden_size"], CONFIG["intermediate_size"], 2 * 16
    matrix = lambda *shape: (rng.standard_normal(shape) * 0.2).astype(np.float32)
    norm = lambda: (1 + rng.standard_normal(hidden) * 0.1).astype(np.float32)
    out = {"model.embed_tokens.weight": matrix(512, hidden)}
    for n in range(CONFIG["num_hidden_layers"]):
        layer = f"model.layers.{n}."
        out[layer + "self_attn.q_proj.weight"] = matrix(8 * 16, hidden)
        out[layer + "self_attn.k_proj.weight"] = matrix(kv, hidden)
        out[layer + "self_attn.v_proj.weight"] = matrix(kv, hidden)
        out[layer + "self_attn.o_proj.weight"] = matrix(hidden, 8 * 16)
        out[layer + "block_sparse_moe.gate.weight"] = matrix(8, hidden)
        for e in range(8):
            expert = f"{layer}block_sparse_moe.experts.{e}."
            out[expert + "w1.weight"] = matrix(inner, hidden)
            out[expert + "w2.weight"] = matrix(hidden, inner)
            out[expert + "w3.weight"] = matrix(inner, hidden)
        out[layer + "input_layernorm.weight"] = norm()
        out[layer + "post_attention_layernorm.weight"] = norm()
    out["model.norm.weight"] = norm()
    out["lm_head.weight"] = matrix(512, hidden)
    return out


def tokenizer():
    """Byte-level BPE: 3 specials, the 256 bytes, 253 two-letter merges."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table, extra = {byte: chr(byte) for byte in visible}, 0
    for byte in range(256):
        if byte not in table:
            table[byte], extra = chr(256 + extra), extra + 1
    pairs = [("\u0120", c) for c in "abcdefghijklmnopqrstuvwxyz01"]
    pairs += [(a, b) for a in "etaoinshrdlucmf" for b in "etaoinshrdlucmf"]
    pieces = ["<unk>", "<s>", "</s>", *(table[byte] for byte in range(256)), *(a + b for a, b in pairs)]
    assert len(pieces) == len(set(pieces)) == 512
    special = [{"id": at, "content": pieces[at], "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": True} for at in range(3)]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
            "pre_tokenizer": level, "post_processor": None, "decoder": level,
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                      "vocab": {piece: at for at, piece in enumerate(pieces)},
                      "merges": [f"{a} {b}" for a, b in pairs]}}


def save(folder, tensors, shard_bytes):
    """Shards with an index, as `save_pretrained` lays them out."""
    shards, size = [{}], 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards, size = [*shards, {}], 0
        shards[-1][name], size = tensor, size + tensor.nbytes
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": {}}
    for at, shard in enumerate(shards, 1):
        file = f"model-{at:05}-of-{len(shards):05}.safetensors"
        save_file(shard, os.path.join(folder, file), metadata={"format": "pt"})
        index["weight_map"].update({name: file for name in shard})
    write(folder, "model.safetensors.index.json", index)


def write(folder, name, value):
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)


def build(folder):
    os.makedirs(folder, exist_ok=True)
    write(folder, "config.json", CONFIG)
    write(folder, "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    write(folder, "tokenizer.json", tokenizer())
    write(folder, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>",
                                            "eos_token": "</s>", "unk_token": "<unk>", "model_max_length": 256})
    save(folder, weights(), SHARD_BYTES)


def prompt(length):
    return [(11 + at * 37 + at * at * 5) % 509 + 3 for at in range(length)]


def main():
    torch.set_num_threads(2)
    build(sys.argv[1])
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32, attn_implementation="eager",
                                                 experts_implementation="eager").eval()
    rows = []
    for length in (5, 17, 40):
        with torch.no_grad():
            out = model(torch.tensor([prompt(length)]), output_router_logits=True)
        logits, top = out.logits[0], out.logits[0].topk(2).values
        thirds = torch.cat([layer.softmax(-1).topk(3).values for layer in out.router_logits])
        print(f"{length}: smallest router gap {float((thirds[:, 1] - thirds[:, 2]).min()):.2e}, experts used "
              f"{[sorted(set(layer.topk(2).indices.flatten().tolist())) for layer in out.router_logits]}",
              file=sys.stderr)
        rows.append({"ids": prompt(length), "logits": [float(f"{x:.7g}") for x in logits[-1].tolist()],
                     "argmax": logits.argmax(-1).tolist(),
                     "gaps": [round(x, 6) for x in (top[:, 0] - top[:, 1]).tolist()]})
    json.dump({"generator": "mixtral_logits.py", "seed": SEED, "config": CONFIG, "rows": rows}, sys.stdout,
              separators=(",", ":"))


if __name__ == "__main__":
    main()
