"""Logits of small models with seeded weights under seeded LoRA adapters: the golden of `tests/adapters.rs`.

    python seeded_lora.py > seeded_lora.json     (transformers 5.24.0, peft 0.21.2, torch 2.15.0, CPU, f32)

Models and adapters follow from their tensors' names as in seeded.py, so that no file has to be kept.

"llama": peft's unmerged forward over every product of a biased Llama, rsLoRA, with rank_pattern and alpha_pattern.
"mixtral_fused": peft's unmerged forward over the parameters that transformers 5 fuses the experts into.
"mixtral": the classical names (w1, w2, w3 of each expert), from weights merged here, W + scale * B @ A, as peft cannot
give a fused expert a rank of its own; some experts and layers have no update.
"""

import json
import math
import os
import sys
import tempfile

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from seeded import DECODER, DECODERS, fill, prompt, tensor

LENGTHS = (5, 17, 40)


def base(name):
    folder = {**DECODER, **DECODERS[name]}
    config = AutoConfig.for_model(**folder)
    extra = {"experts_implementation": "eager"} if name == "mixtral" else {}
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", **extra)
    return folder, fill(model.to(torch.float32))


def rows(model):
    out = []
    for length in LENGTHS:
        with torch.no_grad():
            logits = model(torch.tensor([prompt(length)])).logits[0, -1]
        out.append({"ids": prompt(length), "logits": [float(f"{x:.7g}") for x in logits.tolist()]})
    return out


def by_peft(name, config):
    folder, model = base(name)
    model = get_peft_model(model, config).eval()
    tensors = {}
    for full, parameter in model.named_parameters():
        if "lora_" in full:
            saved = full.replace(".default.weight", ".weight")
            tensors[saved] = list(parameter.shape)
            parameter.data = tensor(saved, tuple(parameter.shape))
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        adapter = json.load(open(os.path.join(scratch, "adapter_config.json"), encoding="utf-8"))
    return {"config": folder, "adapter_config": adapter, "tensors": tensors, "rows": rows(model)}


def mixtral():
    folder, model = base("mixtral")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 6, "bias": "none",
              "target_modules": ["q_proj", "o_proj", "gate", "w1", "w2", "w3"], "rank_pattern": {"w2": 2},
              "alpha_pattern": {r"experts\.[0-3]\.w3": 10}, "use_dora": False, "use_rslora": False}
    tensors, parameters = {}, dict(model.named_parameters())

    def delta(module, n, k, rank, alpha):
        stem = f"base_model.model.{module}"
        tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"] = [rank, k], [n, rank]
        a, b = (tensor(f"{stem}.lora_{x}.weight", shape) for x, shape in (("A", (rank, k)), ("B", (n, rank))))
        return alpha / rank * (b @ a)

    hidden, inner = folder["hidden_size"], folder["intermediate_size"]
    for layer in range(folder["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        for part in ("q_proj", "o_proj"):
            parameters[f"{at}.self_attn.{part}.weight"].data += delta(f"{at}.self_attn.{part}", hidden, hidden, 4, 6)
        if layer == 0:
            moe = f"{at}.block_sparse_moe.gate"
            parameters[f"{at}.mlp.gate.weight"].data += delta(moe, folder["num_local_experts"], hidden, 4, 6)
        for expert in range(folder["num_local_experts"]):
            if expert == 2 + layer:
                continue
            moe = f"{at}.block_sparse_moe.experts.{expert}"
            gate_up = parameters[f"{at}.mlp.experts.gate_up_proj"].data[expert]
            if expert != 5:
                gate_up[:inner] += delta(f"{moe}.w1", inner, hidden, 4, 6)
            gate_up[inner:] += delta(f"{moe}.w3", inner, hidden, 4, 10 if expert < 4 else 6)
            down = parameters[f"{at}.mlp.experts.down_proj"].data[expert]
            down += delta(f"{moe}.w2", hidden, inner, 2, 6)
    return {"config": folder, "adapter_config": config, "tensors": tensors, "rows": rows(model)}


def main():
    torch.manual_seed(0)
    dense = LoraConfig(r=4, lora_alpha=3, use_rslora=True, task_type="CAUSAL_LM",
                       target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
                       rank_pattern={r"layers\.0\.self_attn\.v_proj": 7, "up_proj": 2},
                       alpha_pattern={"down_proj": 5, "^model.layers.1.self_attn.q_proj": 1})
    fused = LoraConfig(r=3, lora_alpha=4, task_type="CAUSAL_LM", target_modules=["v_proj"],
                       target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"])
    out = {"generator": "seeded_lora.py", "llama": by_peft("llama3_tied_biased", dense),
           "mixtral_fused": by_peft("mixtral", fused), "mixtral": mixtral()}
    for name in ("llama", "mixtral_fused", "mixtral"):
        reach = max(abs(x) for row in out[name]["rows"] for x in row["logits"])
        print(f"{name}: {len(out[name]['tensors'])} tensors, largest logit {reach:.3f}", file=sys.stderr)
    assert math.isfinite(reach)
    json.dump(out, sys.stdout, separators=(",", ":"))


if __name__ == "__main__":
    main()
