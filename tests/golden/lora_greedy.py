"""Greedy continuations under LoRA adapters (f32): the golden of Tarn's adapter tests.

    python lora_greedy.py SMOLLM2_F32_FOLDER LORA_SMOLLM_135M_MEDICAL_FOLDER RANDOM_MIXTRAL_FOLDER OUT_PREFIX \
        > lora_greedy.json

(transformers 5.24.0, peft 0.21.2, torch 2.15.0, numpy 2.4.6, safetensors 0.8.0; CPU, f32)

"smollm2": the base by transformers and the adapter by peft, unmerged; 6 prompts, 32 new tokens each.
"random_mixtral": the folder that mixtral_logits.py writes; three adapters with seeds 1 to 3 are written to
OUT_PREFIX1..3 (PEFT folders with the classical names, e.g. base_model.model.model.layers.0.block_sparse_moe.
experts.5.w1.lora_A.weight) over q, k, v, o, the router and every expert's w1, w2, w3; rank 8, alpha 16. As
transformers 5 fuses the experts, the golden comes from weights merged here, W + 2 * B @ A in f32; peft's own
loading of the same folders is compared on standard error. Beside every id stands the gap between the two largest
logits.
"""

import json
import os
import sys
import tempfile

import numpy as np
import torch
from peft import PeftModel
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = ["The capital of France is", "Patient presents with chest pain and", "The symptoms of diabetes include",
           "A miniature circuit breaker protects", "Die Hauptstadt von Deutschland ist", "The quick brown fox"]
TOKENS, RANK, ALPHA = 32, 8, 16
# Prompts without near ties: under all four sets of weights every gap is above 5e-3, and the second and third router
# probabilities lie more than 2e-4 apart at every position.
SALTS = [16, 28, 55, 62, 92, 100]
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate", "w1", "w2", "w3"]


def greedy(model, ids):
    with torch.no_grad():
        out = model.generate(torch.tensor([ids]), max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False,
                             eos_token_id=None, output_logits=True, return_dict_in_generate=True, pad_token_id=0)
    top = [logits[0].topk(2).values for logits in out.logits]
    return {"prompt_ids": ids, "ids": out.sequences[0, len(ids):].tolist(),
            "gaps": [round(float(pair[0] - pair[1]), 6) for pair in top]}


def smollm2(folder, adapter):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [(prompt, tokenizer(prompt).input_ids) for prompt in PROMPTS]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    base = [{"prompt": prompt, **greedy(model, ids)} for prompt, ids in prompts]
    model = PeftModel.from_pretrained(model, adapter).eval()
    return {"adapter": os.path.basename(os.path.normpath(adapter)), "base": base,
            "lora": [{"prompt": prompt, **greedy(model, ids)} for prompt, ids in prompts]}


def weights(folder):
    index = json.load(open(os.path.join(folder, "model.safetensors.index.json"), encoding="utf-8"))
    tensors = {}
    for file in sorted(set(index["weight_map"].values())):
        tensors.update(load_file(os.path.join(folder, file)))
    return tensors


def adapter(tensors, seed, folder):
    """Writes a random adapter and returns its pairs (A, B) by the name of the tensor that they change."""
    rng, pairs = np.random.default_rng(seed), {}
    for name in sorted(tensors):
        if name.endswith(".weight") and name.split(".")[-2] in TARGETS:
            rows, columns = tensors[name].shape
            pairs[name] = ((rng.standard_normal((RANK, columns)) * 0.1).astype(np.float32),
                           (rng.standard_normal((rows, RANK)) * 0.1).astype(np.float32))
    out = {}
    for name, (a, b) in pairs.items():
        stem = "base_model.model." + name.removesuffix(".weight")
        out[stem + ".lora_A.weight"], out[stem + ".lora_B.weight"] = a, b
    os.makedirs(folder, exist_ok=True)
    save_file(out, os.path.join(folder, "adapter_model.safetensors"), metadata={"format": "pt"})
    config = {"alpha_pattern": {}, "auto_mapping": None, "base_model_name_or_path": "random-mixtral", "bias": "none",
              "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True, "layers_to_transform": None,
              "layers_pattern": None, "lora_alpha": ALPHA, "lora_dropout": 0.0, "modules_to_save": None,
              "peft_type": "LORA", "r": RANK, "rank_pattern": {}, "revision": None, "target_modules": TARGETS,
              "task_type": "CAUSAL_LM", "use_dora": False, "use_rslora": False}
    with open(os.path.join(folder, "adapter_config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file, indent=1)
    return pairs


def mixtral(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager",
                                                experts_implementation="eager").eval()


def merged(folder, tensors, pairs):
    with tempfile.TemporaryDirectory() as scratch:
        scale = np.float32(ALPHA / RANK)
        whole = {name: tensor + scale * (pairs[name][1] @ pairs[name][0]) if name in pairs else tensor
                 for name, tensor in tensors.items()}
        save_file(whole, os.path.join(scratch, "model.safetensors"), metadata={"format": "pt"})
        with open(os.path.join(folder, "config.json"), "rb") as source:
            with open(os.path.join(scratch, "config.json"), "wb") as target:
                target.write(source.read())
        return mixtral(scratch)


def compare_with_peft(folder, target, golden, ids):
    try:
        model = PeftModel.from_pretrained(mixtral(folder), target).eval()
        with torch.no_grad():
            difference = (model(torch.tensor([ids])).logits - golden(torch.tensor([ids])).logits).abs().max()
        print(f"{target}: largest difference to peft's own loading {float(difference):.2e}", file=sys.stderr)
    except Exception as error:  # a peft that cannot target fused experts: the merged weights stand alone
        print(f"{target}: not compared with peft: {type(error).__name__}: {error}", file=sys.stderr)


def random_mixtral(folder, prefix):
    prompts = [[(salt * 71 + at * 43 + at * at * 3) % 509 + 3 for at in range(4 + 6 * row)]
               for row, salt in enumerate(SALTS)]
    tensors = weights(folder)
    model = mixtral(folder)
    out = {"rank": RANK, "alpha": ALPHA, "targets": TARGETS, "base": [greedy(model, ids) for ids in prompts],
           "adapters": []}
    for seed in (1, 2, 3):
        pairs = adapter(tensors, seed, f"{prefix}{seed}")
        model = merged(folder, tensors, pairs)
        out["adapters"].append({"seed": seed, "rows": [greedy(model, ids) for ids in prompts]})
        compare_with_peft(folder, f"{prefix}{seed}", model, prompts[-1])
    return out


def main():
    torch.manual_seed(0)
    torch.set_num_threads(2)
    out = {"generator": "lora_greedy.py", "random_mixtral": random_mixtral(sys.argv[3], sys.argv[4]),
           "smollm2": smollm2(sys.argv[1], sys.argv[2])}
    json.dump(out, sys.stdout, separators=(",", ":"))


if __name__ == "__main__":
    main()
