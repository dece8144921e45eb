"""Time to first token while adapters come and go.

    python benches/adapter_swap.py URL ADAPTER_FOLDER [--seconds 40] [--rate 2]

Requests arrive at `--rate` a second, half of them for an adapter that stays. Quiet and busy stretches take turns; in a
busy one another adapter is loaded or unloaded every second. The server needs `--lora-dir` above the folder.
"""

import argparse
import random
import threading
import time

from client import Server, percentile, words


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("url")
    args.add_argument("folder")
    args.add_argument("--seconds", type=float, default=40)
    args.add_argument("--rate", type=float, default=2)
    args.add_argument("--turns", type=int, default=4)
    args = args.parse_args()
    server = Server(args.url)
    model, rng = server.model(), random.Random(1)

    def post(path, body):
        status, text = server.json("POST", path, body)
        assert status == 200, (path, status, text)

    post("/v1/load_lora_adapter", {"lora_name": "stays", "lora_path": args.folder})
    firsts, swaps, seeds = {"quiet": [], "busy": []}, [], iter(range(int(time.time()), 1 << 40))

    def swap(stop):
        loaded, at = False, 0
        while not stop.wait(1.0):
            started = time.perf_counter()
            if loaded:
                post("/v1/unload_lora_adapter", {"lora_name": f"comes-{at}"})
                at += 1
            else:
                post("/v1/load_lora_adapter", {"lora_name": f"comes-{at}", "lora_path": args.folder})
                swaps.append(time.perf_counter() - started)
            loaded = not loaded
        if loaded:
            post("/v1/unload_lora_adapter", {"lora_name": f"comes-{at}"})

    def ask(kind, seed):
        answer = server.stream({"model": model if seed % 2 else "stays", "prompt": words(seed, 100), "max_tokens": 24,
                                "temperature": 0, "ignore_eos": True})
        assert not answer.error, answer.error
        firsts[kind].append(answer.first)

    for turn in range(args.turns * 2):
        kind, stop, asked = ("quiet", "busy")[turn % 2], threading.Event(), []
        swapper = threading.Thread(target=swap, args=(stop,))
        if kind == "busy":
            swapper.start()
        end = time.perf_counter() + args.seconds / args.turns
        while time.perf_counter() < end:
            thread = threading.Thread(target=ask, args=(kind, next(seeds)))
            thread.start()
            asked.append(thread)
            time.sleep(rng.expovariate(args.rate))
        [thread.join() for thread in asked]
        stop.set()
        if kind == "busy":
            swapper.join()
    post("/v1/unload_lora_adapter", {"lora_name": "stays"})
    quiet, busy = firsts["quiet"], firsts["busy"]
    for name, values in firsts.items():
        print(f"{name}: {len(values)} requests, first token p50 {percentile(values, .5) * 1e3:.0f} ms, "
              f"p95 {percentile(values, .95) * 1e3:.0f} ms")
    print(f"busy / quiet: p50 {percentile(busy, .5) / percentile(quiet, .5):.2f}, "
          f"p95 {percentile(busy, .95) / percentile(quiet, .95):.2f}; {len(swaps)} loads, p50 {percentile(swaps, .5) * 1e3:.0f} ms")


if __name__ == "__main__":
    main()
