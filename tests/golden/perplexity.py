"""Perplexity of perplexity.txt: by llama.cpp for a GGUF, by transformers for a Hugging Face folder.

    python perplexity.py smollm2-f32 fp8:smollm2-f32 smollm2.Q8_0.gguf perplexity.txt > perplexity.json
        (transformers 5.24.0, torch 2.15.0, f32, eager attention; llama-cpp-python, CPU, f16 cache)

With `fp8:` in front, the matrices of the layers (all linear ones but the head) are rounded to torch.float8_e4m3fn and
back, each row with the scale that makes its largest weight 448, and everything is computed in f32.

The whole text is tokenised at once as UTF-8, exactly as it lies on disk (the last newline included), without BOS or
EOS and without reading special tokens out of the text. The ids are cut into consecutive chunks of 512; a last, shorter
chunk is dropped. Every chunk starts from an empty cache at position 0. The NLL of chunk position i (1 to 511) is
-ln softmax(logits at i - 1)[id at i], computed in f64; position 0 is not predicted. The perplexity is exp of the mean
over all chunks' 511 values. This is not llama.cpp's own `perplexity` tool, which scores only the second half of a
chunk and puts a BOS in front where the model wants one.
"""

import argparse
import json
import os

import numpy as np

CHUNK = 512


def chunks(ids):
    return [ids[at:at + CHUNK] for at in range(0, len(ids) - CHUNK + 1, CHUNK)]


def nll(logits, ids):
    """The 511 values of a chunk; `logits` is [512, vocabulary]."""
    logits = np.asarray(logits[:CHUNK - 1], dtype=np.float64)
    highest = logits.max(axis=1)
    total = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))
    return total - logits[np.arange(CHUNK - 1), np.asarray(ids[1:])]


def llama_cpp(model, text):
    import llama_cpp

    llama = llama_cpp.Llama(model_path=model, n_ctx=CHUNK, n_batch=CHUNK, n_ubatch=CHUNK, n_gpu_layers=0, n_threads=2,
                            n_threads_batch=2, logits_all=True, verbose=False)
    ids = llama.tokenize(text, add_bos=False, special=False)

    def logits(chunk):
        llama.reset()  # sets n_tokens to 0, so that eval starts at position 0 and drops what the cache held
        llama.eval(chunk)
        assert llama.n_tokens == CHUNK
        return np.array(llama.scores[:CHUNK])  # [n_ctx, n_vocab] because of logits_all; row i follows token i

    return ids, logits, f"llama-cpp-python {llama_cpp.__version__}"


def fp8(weight):
    """`weight` [n, k] as codes with a scale a row, and back."""
    import torch

    scale = weight.abs().amax(dim=1, keepdim=True) / 448
    return (weight / scale).to(torch.float8_e4m3fn).float() * scale


def transformers(folder, text, rounded):
    import tokenizers
    import torch
    import transformers

    torch.set_num_threads(2)
    tokenizer = tokenizers.Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    ids = tokenizer.encode(text.decode("utf-8"), add_special_tokens=False).ids
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32,
                                                              attn_implementation="eager").eval()
    for name, module in model.named_modules():
        if rounded and "layers." in name and isinstance(module, torch.nn.Linear):
            module.weight.data = fp8(module.weight.data)

    def logits(chunk):
        with torch.no_grad():
            return model(torch.tensor([chunk])).logits[0].numpy()

    return ids, logits, f"transformers {transformers.__version__}, f32"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="+")
    parser.add_argument("text")
    arguments = parser.parse_args()
    with open(arguments.text, "rb") as file:
        text = file.read()
    golden, results = None, []
    for given in arguments.models:
        model, rounded = given.removeprefix("fp8:"), given.startswith("fp8:")
        ids, logits, engine = transformers(model, text, rounded) if os.path.isdir(model) else llama_cpp(model, text)
        golden = golden or ids
        assert ids == golden, f"{model} tokenises the text in another way"
        values = np.concatenate([nll(logits(chunk), chunk) for chunk in chunks(ids)])
        results.append({"model": os.path.basename(model.rstrip("/")), "dtype": "fp8" if rounded else "auto",
                        "engine": engine, "perplexity": round(float(np.exp(values.mean())), 6)})
    print(json.dumps({"generator": "perplexity.py", "results": results, "ids": golden}, separators=(",", ":")))


if __name__ == "__main__":
    main()
