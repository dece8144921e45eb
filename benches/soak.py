"""Many requests of two customers, with cancels: nothing may be left over. Then a flood: the other customer keeps its share.

    python benches/soak.py URL --pid PID [--requests 5000] [--workers 32] [--words 250] [--only soak|flood]

Prints memory as it goes and at the end: blocks in use, requests running and waiting (all must be 0), and for the flood the
time to first token of the quiet customer with and without it.
"""

import argparse
import collections
import random
import threading
import time

from client import Server, median, memory, percentile, words


def soak(server, args):
    model, lock, left = server.model(), threading.Lock(), iter(range(args.requests))
    finishes, errors, marks = collections.Counter(), [], []

    def worker(number):
        rng = random.Random(number)
        while True:
            with lock:
                at = next(left, None)
            if at is None:
                return
            body = {"model": model, "prompt": words(at % 997, rng.randint(4, args.words)), "max_tokens": rng.randint(1, 48),
                    "temperature": rng.choice([0, 0.8]), "n": rng.choice([1, 1, 1, 2, 4]), "ignore_eos": True,
                    "seed": at}
            if rng.random() < 0.2:
                body["stop"] = [rng.choice(["er", " the", "\n"])]
            cancel = rng.randint(1, 12) if rng.random() < 0.25 else None
            answer = server.stream(body, headers={"X-Customer-Id": f"customer-{at % 2}"}, cancel_after=cancel)
            with lock:
                finishes[answer.finish or f"HTTP {answer.status}"] += 1
                if answer.error:
                    errors.append(answer.error)
                if (at + 1) % (args.requests // 10) == 0:
                    marks.append(memory(args.pid)[0])
                    print(f"  {at + 1} requests: {marks[-1]:.0f} MiB", flush=True)

    threads = [threading.Thread(target=worker, args=(number,)) for number in range(args.workers)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    time.sleep(1)
    leftovers = {name: server.metric(name) for name in
                 ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")}
    print(f"{args.requests} requests ended: {dict(finishes)}, {len(errors)} errors {errors[:2]}")
    print(f"left over: {leftovers}; memory {marks[1]:.0f} MiB after a fifth, {marks[-1]:.0f} MiB at the end")


def flood(server, args):
    model, stop = server.model(), threading.Event()
    seeds = iter(range(10_000_000, 1 << 40))

    def ask(customer, length, tokens):
        body = {"model": model, "prompt": words(next(seeds), length), "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        return server.stream(body, headers={"X-Customer-Id": customer})

    def quiet(rounds):
        answers = [ask("quiet", 40, 16) for _ in range(rounds)]
        return [answer.first for answer in answers], [answer.tokens / answer.last for answer in answers]

    quiet(3)
    alone, alone_rate = quiet(20)

    def pour():
        while not stop.is_set():
            ask("flood", 400, 128)

    threads = [threading.Thread(target=pour) for _ in range(100)]
    [thread.start() for thread in threads]
    time.sleep(5)
    beside, beside_rate = quiet(20)
    stop.set()
    [thread.join() for thread in threads]
    print(f"a quiet customer's first token: alone p50 {median(alone) * 1e3:.0f} ms, beside a flood of 100 streams p50 "
          f"{median(beside) * 1e3:.0f} ms, p95 {percentile(beside, .95) * 1e3:.0f} ms; tokens a second {median(alone_rate):.0f} and "
          f"{median(beside_rate):.0f}")


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("url")
    args.add_argument("--pid", type=int, required=True)
    args.add_argument("--requests", type=int, default=5000)
    args.add_argument("--workers", type=int, default=32)
    args.add_argument("--words", type=int, default=250)
    args.add_argument("--only", choices=["soak", "flood"])
    args = args.parse_args()
    server = Server(args.url)
    if args.only != "flood":
        soak(server, args)
    if args.only != "soak":
        flood(server, args)


if __name__ == "__main__":
    main()
