"""What the measurements share: requests to a running OpenAI-compatible server. Python 3.9 or later, nothing else."""

import dataclasses
import http.client
import json
import statistics
import threading
import time
import urllib.parse


@dataclasses.dataclass
class Answer:
    """One streamed completion. Times are in seconds from the sending of the request."""

    status: int
    first: float = 0.0
    last: float = 0.0
    tokens: int = 0
    cached: int = 0
    text: str = ""
    finish: str = ""
    error: str = ""


class Server:
    """A server by its address, e.g. http://127.0.0.1:9300."""

    def __init__(self, url):
        self.url = url
        self.host = urllib.parse.urlsplit(url).netloc

    def json(self, method, path, body=None, headers=None):
        """Status and parsed (or raw) body of one request."""
        connection = http.client.HTTPConnection(self.host, timeout=900)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
            answer = connection.getresponse()
            raw = answer.read()
            try:
                return answer.status, json.loads(raw)
            except ValueError:
                return answer.status, raw.decode(errors="replace")
        finally:
            connection.close()

    def model(self):
        return self.json("GET", "/v1/models")[1]["data"][0]["id"]

    def metric(self, name):
        """The sum of a metric over its labels."""
        text = self.json("GET", "/metrics")[1]
        lines = [line for line in text.splitlines() if line.split("{")[0].split(" ")[0] == name]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def stream(self, body, path="/v1/completions", headers=None, cancel_after=None):
        """Sends a streaming request and reads it; goes away after `cancel_after` events."""
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        connection = http.client.HTTPConnection(self.host, timeout=900)
        started = time.perf_counter()
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json", **(headers or {})})
            response = connection.getresponse()
            answer = Answer(response.status)
            if response.status != 200:
                answer.error = response.read().decode(errors="replace")
                return answer
            events = 0
            for line in response:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    answer.error = json.dumps(event["error"])
                    return answer
                for choice in event.get("choices", ()):
                    answer.first = answer.first or time.perf_counter() - started
                    answer.text += choice.get("text") or choice.get("delta", {}).get("content") or ""
                    answer.finish = choice.get("finish_reason") or answer.finish
                usage = event.get("usage")
                if usage:
                    answer.tokens = usage["completion_tokens"]
                    answer.cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
                events += 1
                if cancel_after is not None and events >= cancel_after:
                    answer.finish = "cancelled"
                    return answer
            answer.last = time.perf_counter() - started
            return answer
        finally:
            connection.close()


def together(jobs):
    """Runs the functions at the same time, each on its own thread; their results in order."""
    results = [None] * len(jobs)

    def run(at):
        results[at] = jobs[at]()

    threads = [threading.Thread(target=run, args=(at,)) for at in range(len(jobs))]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return results


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))]


median = statistics.median


def memory(pid):
    """Resident memory of a process in MiB: now and at its highest."""
    with open(f"/proc/{pid}/status", encoding="ascii") as lines:
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return tuple(int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))


WORDS = ("breaker terminal cable rated current pole rail torque lamp relay sensor contact switch housing voltage fuse "
         "bracket coil plate thread valve flange gasket motor pump filter").split()


def words(seed, count):
    """`count` words that follow from `seed`; other seeds differ from the first word on."""
    state, out = (seed * 2654435761 + 12345) % 2**32, []
    for _ in range(count):
        state = (state * 1664525 + 1013904223) % 2**32
        out.append(WORDS[(state >> 16) % len(WORDS)])
    return " ".join([f"Item {seed}:"] + out) + "."
