"""Streams at a time against a running OpenAI-compatible server: tokens a second, time to first token, memory.

    python benches/serving.py URL [--streams 1,16] [--tokens 64] [--pid PID]

Every stream sends another prompt of 60 words. Needs Python 3.9 or later and nothing else.
"""

import argparse
import json
import threading
import time
import urllib.request


def call(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    return urllib.request.urlopen(urllib.request.Request(url, data, {"Content-Type": "application/json"}), timeout=600)


def prompt(seed):
    words = ["breaker", "terminal", "cable", "rated", "current", "pole", "rail", "torque", "lamp", "relay"]
    return " ".join(words[(seed * 7 + at * (3 + seed % 5)) % len(words)] for at in range(60)) + "."


def stream(url, model, seed, tokens, out):
    started, first, count = time.time(), None, 0
    body = {"model": model, "prompt": prompt(seed), "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
            "stream": True, "stream_options": {"include_usage": True}}
    with call(f"{url}/v1/completions", body) as answer:
        for line in answer:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                if event.get("choices") and first is None:
                    first = time.time()
                if event.get("usage"):
                    count = event["usage"]["completion_tokens"]
    out.append((first - started, count))


def memory(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as lines:
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return ", ".join(f"{name} {int(fields[name].split()[0]) / 1024:.0f} MiB" for name in ("VmRSS", "VmHWM"))


def main():
    args = argparse.ArgumentParser()
    args.add_argument("url")
    args.add_argument("--streams", default="1,16")
    args.add_argument("--tokens", type=int, default=64)
    args.add_argument("--pid", type=int)
    args = args.parse_args()
    with call(f"{args.url}/v1/models") as answer:
        model = json.load(answer)["data"][0]["id"]
    seed = int(time.time())
    for streams in map(int, args.streams.split(",")):
        rates, firsts = [], []
        for _ in range(4):
            out, started = [], time.time()
            threads = [threading.Thread(target=stream, args=(args.url, model, seed + at, args.tokens, out))
                       for at in range(streams)]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
            assert len(out) == streams and all(count == args.tokens for _, count in out), out
            rates.append(sum(count for _, count in out) / (time.time() - started))
            firsts += [first for first, _ in out]
            seed += streams
        rates, firsts = sorted(rates[1:]), sorted(firsts[streams:])
        print(f"{streams:3d} streams: {rates[1]:7.1f} tokens/s, first token p50 {firsts[len(firsts) // 2] * 1e3:.0f} ms", flush=True)
    if args.pid:
        print(f"memory: {memory(args.pid)}")


if __name__ == "__main__":
    main()
