"""Streams at a time against a running OpenAI-compatible server: tokens a second, time to first token, memory.

    python benches/serving.py URL [--streams 1,16] [--tokens 64] [--words 60] [--rounds 3] [--alone N] [--pid PID]

Every stream sends another prompt. With `--alone`, as many of the prompts of the last round are sent again one by one, and
the answers must be the same texts: greedy output does not depend on what else is in the batch.
"""

import argparse
import functools
import time

from client import Server, median, memory, percentile, together, words


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("url")
    args.add_argument("--streams", default="1,16")
    args.add_argument("--tokens", type=int, default=64)
    args.add_argument("--words", type=int, default=60)
    args.add_argument("--rounds", type=int, default=3)
    args.add_argument("--alone", type=int, default=0)
    args.add_argument("--pid", type=int)
    args = args.parse_args()
    server = Server(args.url)
    model, seed = server.model(), int(time.time())

    def send(at):
        return server.stream({"model": model, "prompt": words(at, args.words), "max_tokens": args.tokens,
                              "temperature": 0, "ignore_eos": True})

    for streams in map(int, args.streams.split(",")):
        rates, firsts = [], []
        for at_round in range(args.rounds + 1):
            seeds, started = range(seed, seed + streams), time.perf_counter()
            answers = together([functools.partial(send, at) for at in seeds])
            took = time.perf_counter() - started
            wrong = [answer for answer in answers if answer.error or answer.tokens != args.tokens]
            assert not wrong, wrong[0]
            if at_round > 0:  # the first round warms up
                rates.append(sum(answer.tokens for answer in answers) / took)
                firsts += [answer.first for answer in answers]
            seed += streams
        print(f"{streams:3d} streams: {median(rates):7.1f} tokens/s, first token p50 {percentile(firsts, .5) * 1e3:.0f} ms, "
              f"p95 {percentile(firsts, .95) * 1e3:.0f} ms", flush=True)
        if args.alone:
            same = sum(send(at).text == answer.text for at, answer in list(zip(seeds, answers))[:args.alone])
            print(f"    {same} of {min(args.alone, streams)} answers equal to the same prompt alone", flush=True)
            assert same == min(args.alone, streams)
    if args.pid:
        now, peak = memory(args.pid)
        print(f"memory: {now:.0f} MiB, at its highest {peak:.0f} MiB")


if __name__ == "__main__":
    main()
