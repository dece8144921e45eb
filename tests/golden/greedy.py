"""Greedy continuations of SmolLM2-135M-Instruct (f32) by transformers: the golden of `tests/models.rs`.

    python greedy.py SMOLLM2_F32_FOLDER > greedy_smollm2.json      (transformers 4.57.6, torch 2.x, CPU, f32)

20 prompts, 64 new tokens each. Beside every id stands the gap between the two largest logits, so that a
difference can be judged: one is allowed where the gap is below 1e-4.
"""

import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = [
    "The capital of France is", "Copper conducts electricity because", "def fibonacci(n):\n",
    "A miniature circuit breaker protects", "Die Hauptstadt von Deutschland ist", "Once upon a time, in a small village,",
    "1, 2, 3, 5, 8, 13,", "The rated current of the device is 16 A. The rated voltage is",
    "Water boils at 100 degrees Celsius at sea level. At higher altitudes,", "SELECT name, price FROM products WHERE",
    "In 1969, humans first", "The three primary colors are", "To make a cup of tea, first", "import numpy as np\n\n",
    "Photosynthesis is the process by which", "The square root of 144 is", "An electric motor converts",
    "Question: What is ETIM?\nAnswer:", "Sehr geehrte Damen und Herren,", "The quick brown fox",
]


def main():
    torch.manual_seed(0)
    torch.set_num_threads(2)
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
    rows = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            out = model.generate(ids, max_new_tokens=64, min_new_tokens=64, do_sample=False, eos_token_id=None,
                                 output_scores=True, return_dict_in_generate=True, pad_token_id=0)
        gaps = [float((lambda top: top[0] - top[1])(score[0].topk(2).values)) for score in out.scores]
        rows.append({"prompt": prompt, "prompt_ids": ids[0].tolist(),
                     "ids": out.sequences[0, ids.shape[1]:].tolist(), "gaps": [round(gap, 6) for gap in gaps]})
    json.dump({"generator": "greedy.py", "model": "SmolLM2-135M-Instruct, f32 from GGUF Q4_1", "rows": rows},
              sys.stdout, separators=(",", ":"))


if __name__ == "__main__":
    main()
