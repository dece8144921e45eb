"""Perplexity of perplexity.txt: by llama.cpp for a GGUF, by transformers for a Hugging Face folder.

    python perplexity.py MODEL.gguf perplexity.txt [--f32-cache] [--ids ids.json]        (llama-cpp-python, CPU)
    python perplexity.py smollm2-f32 perplexity.txt [--ids ids.json] > perplexity_smollm2.json
                                     (transformers 5.24.0, torch 2.15.0, tokenizers 0.23.3; CPU, f32, eager attention)

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


def llama_cpp(model, text, f32_cache):
    import llama_cpp

    extra = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32} if f32_cache else {}
    llama = llama_cpp.Llama(model_path=model, n_ctx=CHUNK, n_batch=CHUNK, n_ubatch=CHUNK, n_gpu_layers=0, n_threads=2,
                            n_threads_batch=2, logits_all=True, verbose=False, **extra)
    ids = llama.tokenize(text, add_bos=False, special=False)

    def logits(chunk):
        llama.reset()  # sets n_tokens to 0, so that eval starts at position 0 and drops what the cache held
        llama.eval(chunk)
        assert llama.n_tokens == CHUNK
        return np.array(llama.scores[:CHUNK])  # [n_ctx, n_vocab] because of logits_all; row i follows token i

    return ids, logits, f"llama-cpp-python {llama_cpp.__version__}, {'f32' if f32_cache else 'f16'} cache"


def transformers(folder, text):
    import tokenizers
    import torch
    import transformers

    torch.set_num_threads(2)
    tokenizer = tokenizers.Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    ids = tokenizer.encode(text.decode("utf-8"), add_special_tokens=False).ids
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32,
                                                              attn_implementation="eager").eval()

    def logits(chunk):
        with torch.no_grad():
            return model(torch.tensor([chunk])).logits[0].numpy()

    return ids, logits, f"transformers {transformers.__version__}, f32"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--f32-cache", action="store_true", help="llama.cpp's cache in f32 instead of f16")
    parser.add_argument("--ids", help="also write the token ids of the whole text to this file")
    arguments = parser.parse_args()
    with open(arguments.text, "rb") as file:
        text = file.read()
    if os.path.isdir(arguments.model):
        ids, logits, engine = transformers(arguments.model, text)
    else:
        ids, logits, engine = llama_cpp(arguments.model, text, arguments.f32_cache)
    if arguments.ids:
        with open(arguments.ids, "w", encoding="utf-8") as file:
            json.dump(ids, file, separators=(",", ":"))
    values = [nll(logits(chunk), chunk) for chunk in chunks(ids)]
    print(json.dumps({"generator": "perplexity.py", "engine": engine, "model": os.path.basename(arguments.model),
                      "tokens": len(ids), "chunks": len(values),
                      "chunk_nll": [round(float(value.mean()), 6) for value in values],
                      "perplexity": round(float(np.exp(np.concatenate(values).mean())), 6)}))


if __name__ == "__main__":
    main()
