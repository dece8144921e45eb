"""Prompt lookup on and off, request by request in turns.

    python benches/speculation.py URL_WITH URL_WITHOUT CORPUS.jsonl.gz [--documents 24] [--tokens 128] [--streams 1]

Two servers with the same model, one started with `--speculation off`. The corpus has BEIR's shape ({"title", "text"}).
"quote" asks for a passage and begins the quotation, as an answer with citations does (greedy); "open" asks for free text about
it at temperature 1 with a seed. How much of an answer is copied is printed: the share of its runs of four words that the
passage has. Greedy and seeded answers must be the same on both servers: speculation changes the time and nothing else. Rates are
those of writing: tokens after the first, by the time after it.
"""

import argparse
import gzip
import itertools
import json

from client import Server, median, together


def passages(path, count):
    with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8") as lines:
        documents = map(json.loads, lines)
        long = (document for document in documents if 400 < len(document["text"]) < 1600)
        return [(document["title"], document["text"]) for document in itertools.islice(long, count)]


def body(model, kind, title, text, at, tokens):
    if kind == "quote":
        begun = " ".join(text.split()[:6])
        prompt = f"Document 1: {title}\n{text}\n\nQuestion: What does document 1 say?\nAnswer: Document 1 says: \"{begun}"
        how = {"temperature": 0}
    else:
        prompt = f"A short story in which somebody talks about this: {title}\n\n"
        how = {"temperature": 1.0, "seed": at}
    return {"model": model, "prompt": prompt, "max_tokens": tokens, **how}


def copied(text, answer):
    fours = lambda words: [tuple(words[at:at + 4]) for at in range(len(words) - 3)]
    known, found = set(fours(text.split())), fours(answer.split())
    return sum(four in known for four in found) / max(1, len(found))


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("on")
    args.add_argument("off")
    args.add_argument("corpus")
    args.add_argument("--documents", type=int, default=24)
    args.add_argument("--tokens", type=int, default=128)
    args.add_argument("--streams", type=int, default=1)
    args = args.parse_args()
    servers = {"on": Server(args.on), "off": Server(args.off)}
    models = {name: server.model() for name, server in servers.items()}
    found = passages(args.corpus, args.documents)
    for kind in ("quote", "open"):
        rates, ratios, same, shares = {"on": [], "off": []}, [], 0, []
        for at in range(0, len(found) - args.streams + 1, args.streams):
            texts = {}
            for name in ("on", "off") if at % 2 else ("off", "on"):
                def send(n, name=name):
                    title, text = found[n]
                    return servers[name].stream(body(models[name], kind, title, text, n, args.tokens))
                answers = together([lambda n=n: send(n) for n in range(at, at + args.streams)])
                assert not any(answer.error for answer in answers), answers
                texts[name] = [answer.text for answer in answers]
                rate = sum((answer.tokens - 1) / (answer.last - answer.first) for answer in answers)
                rates[name].append(rate)
            ratios.append(rates["on"][-1] / rates["off"][-1])
            same += texts["on"] == texts["off"]
            shares += [copied(found[at + n][1], text) for n, text in enumerate(texts["on"])]
        print(f"{kind}: {median(rates['on']):.0f} tokens/s with, {median(rates['off']):.0f} without; ratio p50 {median(ratios):.2f}, "
              f"least {min(ratios):.2f}; {same} of {len(ratios)} answers the same, {median(shares) * 100:.0f} % copied", flush=True)


if __name__ == "__main__":
    main()
