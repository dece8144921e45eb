"""Time to first token with and without a cached prefix.

    python benches/prefix_cache.py URL [--words 800] [--rounds 9]

Each round sends a new prefix with one question, then the same prefix with another. The pairs' ratios are what counts.
"""

import argparse
import time

from client import Server, median, words


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("url")
    args.add_argument("--words", type=int, default=800)
    args.add_argument("--rounds", type=int, default=9)
    args = args.parse_args()
    server = Server(args.url)
    model, seed = server.model(), int(time.time())
    firsts, ratios, cached, tokens = [], [], [], []
    for at in range(args.rounds + 1):
        prefix = words(seed + at, args.words)
        pair = []
        for question in ("What is rated?", "Which pole?"):
            body = {"model": model, "prompt": f"{prefix}\n{question}", "max_tokens": 2, "temperature": 0, "ignore_eos": True}
            answer = server.stream(body)
            assert not answer.error, answer.error
            pair.append(answer)
        if at > 0:
            firsts.append(pair[0].first)
            ratios.append(pair[1].first / pair[0].first)
            cached.append(pair[1].cached)
            tokens.append(server.json("POST", "/tokenize", {"model": model, "prompt": prefix})[1]["count"])
    print(f"prefix of {median(tokens):.0f} tokens, {median(cached):.0f} of them cached the second time")
    print(f"first token {median(firsts) * 1e3:.0f} ms, with the prefix cached {median(ratios) * 100:.1f} % of that "
          f"(worst round {max(ratios) * 100:.1f} %)")


if __name__ == "__main__":
    main()
