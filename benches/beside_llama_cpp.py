"""One stream of llama.cpp and one and many streams of Tarn, in turns, on the same GGUF.

    python benches/beside_llama_cpp.py URL MODEL.gguf [--streams 64] [--tokens 64] [--threads 2]

Needs the package llama-cpp-python. The same prompts, greedy; tokens a second with the prompt's time in it.
"""

import argparse
import time

from client import Server, median, together, words


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("url")
    args.add_argument("model")
    args.add_argument("--streams", type=int, default=64)
    args.add_argument("--tokens", type=int, default=64)
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--rounds", type=int, default=5)
    args = args.parse_args()
    from llama_cpp import Llama
    peer = Llama(args.model, n_ctx=2048, n_threads=args.threads, n_threads_batch=args.threads, verbose=False)
    eos = peer.token_eos()
    server, seed = Server(args.url), int(time.time())
    model, rates = server.model(), {"llama.cpp, 1 stream": [], "Tarn, 1 stream": [], f"Tarn, {args.streams} streams": []}

    def send(at):
        return server.stream({"model": model, "prompt": words(at, 60), "max_tokens": args.tokens, "temperature": 0,
                              "ignore_eos": True})

    def of_peer(at):
        tokens = 0
        for _ in peer.create_completion(words(at, 60), max_tokens=args.tokens, temperature=0, stream=True,
                                        logit_bias={str(eos): -100.0}):
            tokens += 1
        return tokens

    def of_tarn(at, streams):
        answers = together([lambda n=n: send(at + n) for n in range(streams)])
        assert not any(answer.error for answer in answers)
        return sum(answer.tokens for answer in answers)

    for turn in range(args.rounds + 1):
        for name, run in zip(rates, (of_peer, lambda at: of_tarn(at, 1), lambda at: of_tarn(at, args.streams))):
            started = time.perf_counter()
            tokens = run(seed)
            if turn > 0:
                rates[name].append(tokens / (time.perf_counter() - started))
            seed += args.streams
    middle = {name: median(values) for name, values in rates.items()}
    for name, rate in middle.items():
        print(f"{name}: {rate:.0f} tokens/s")
    peer_rate, one, many = middle.values()
    print(f"{args.streams} streams are {many / max(peer_rate, one):.2f} times the faster single stream")


if __name__ == "__main__":
    main()
