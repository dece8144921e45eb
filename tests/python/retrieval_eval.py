"""nDCG@10 of Tarn's retrieval, through its HTTP API, on a BEIR-style folder.

    python retrieval_eval.py URL FOLDER [--lang en] [--customer ID] [--modes vector,text,hybrid] [--upload] [--rerank]

FOLDER holds corpus[.LANG].jsonl.gz, queries[.LANG].jsonl and qrels/*.tsv. With --upload the corpus is first
uploaded as one ZIP of text files (title, blank line, text), each named by its document id. A document's rank is
that of its best chunk. With --rerank the server's cross-encoder orders what each mode found. Needs Python 3.9 or later and nothing else.
"""

import argparse
import glob
import gzip
import io
import json
import math
import time
import urllib.request
import uuid
import zipfile


def call(url, data=None, headers=None, timeout=1800):
    request = urllib.request.Request(url, data=data, headers=headers or {})
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return json.load(answer)


def corpus(folder, lang):
    names = [f"{folder}/corpus.{lang}.jsonl.gz", f"{folder}/corpus.jsonl.gz"]
    path = next(name for name in names if glob.glob(name))
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def queries(folder, lang):
    names = [f"{folder}/queries.{lang}.jsonl", f"{folder}/queries.jsonl"]
    path = next(name for name in names if glob.glob(name))
    with open(path, encoding="utf-8") as lines:
        return {str(row["_id"]): row["text"] for row in map(json.loads, lines)}


def qrels(folder, lang):
    paths = glob.glob(f"{folder}/qrels/*{lang}*.tsv") or glob.glob(f"{folder}/qrels/test.tsv") or glob.glob(f"{folder}/qrels/*.tsv")
    wanted = {}
    with open(paths[0], encoding="utf-8") as lines:
        for line in lines:
            parts = line.rstrip("\n").split("\t")
            if len(parts) < 3 or parts[0] in ("query-id", "query_id"):
                continue
            wanted.setdefault(parts[0], {})[parts[1]] = float(parts[-1])
    return wanted


def upload(url, customer, documents, headers):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for row in documents:
            title, text = row.get("title", ""), row.get("text", "")
            archive.writestr(f"{row['_id']}.txt", f"{title}\n\n{text}\n" if title else f"{text}\n")
    boundary = uuid.uuid4().hex
    body = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="corpus.zip"\r\n'
        "Content-Type: application/zip\r\n\r\n"
    ).encode() + packed.getvalue() + f"\r\n--{boundary}--\r\n".encode()
    started = time.time()
    answer = call(f"{url}/api/upload/files?customer_id={customer}", body,
                  {**headers, "Content-Type": f"multipart/form-data; boundary={boundary}"})
    job = answer.get("job_id") or answer["id"]
    while True:
        state = call(f"{url}/api/jobs/{job}?customer_id={customer}", headers=headers)
        status = state.get("status") or state.get("state")
        if status in ("done", "failed"):
            break
        time.sleep(1)
    print(f"ingested {len(documents)} documents in {time.time() - started:.1f} s: {status}")
    if status == "failed":
        raise SystemExit(json.dumps(state)[:2000])


def ndcg(ranked, relevant, k=10):
    gain = sum(relevant.get(doc, 0.0) / math.log2(at + 2) for at, doc in enumerate(ranked[:k]))
    best = sum(rel / math.log2(at + 2) for at, rel in enumerate(sorted(relevant.values(), reverse=True)[:k]))
    return gain / best if best else 0.0


def main():
    args = argparse.ArgumentParser()
    args.add_argument("url")
    args.add_argument("folder")
    args.add_argument("--lang", default="en")
    args.add_argument("--customer", default="default")
    args.add_argument("--modes", default="vector,text,hybrid")
    args.add_argument("--upload", action="store_true")
    args.add_argument("--rerank", action="store_true")
    args.add_argument("--key")
    args = args.parse_args()
    headers = {"Authorization": f"Bearer {args.key}"} if args.key else {}
    if args.upload:
        upload(args.url, args.customer, corpus(args.folder, args.lang), headers)
    asked, wanted = queries(args.folder, args.lang), qrels(args.folder, args.lang)
    for mode in args.modes.split(","):
        scores, times = [], []
        for query_id, relevant in wanted.items():
            body = {"query": asked[query_id], "mode": mode, "top_k": 30, "generate": False, "rerank": args.rerank}
            started = time.time()
            answer = call(f"{args.url}/v1/rag/query?customer_id={args.customer}", json.dumps(body).encode(),
                          {**headers, "Content-Type": "application/json"})
            times.append(time.time() - started)
            ranked = []
            for hit in answer["citations"]:
                name = hit["name"].rsplit("/", 1)[-1].removesuffix(".txt")
                if name not in ranked:
                    ranked.append(name)
            scores.append(ndcg(ranked, relevant))
        times.sort()
        name = f"{mode}+rerank" if args.rerank else mode
        print(f"{name:14s} nDCG@10 {sum(scores) / len(scores):.4f}  queries {len(scores)}  "
              f"p50 {times[len(times) // 2] * 1e3:.1f} ms  p95 {times[int(len(times) * .95)] * 1e3:.1f} ms", flush=True)


if __name__ == "__main__":
    main()
