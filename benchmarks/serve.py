"""A server and 64 clients on this machine, beside bulk encoding of the same texts.

The texts are sentences and Wikipedia passages, half each, drawn by a seed. In every round this
process encodes all of them at once, as `llm2comp.encode` does, and then 64 threads send them to a
server in a process of its own, 8 texts per request, each client one request after the other. Both
take turns, so that a busy minute of the machine is everyone's. The server has the threads that bulk
encoding has, and the clients take processor time beside it. A client that gets 429 waits as it is
told. The table has the server's memory after the first and after the last round.

    python benchmarks/serve.py [--model minilm] [--texts 4096] [--rounds 3]
"""

import argparse
import http.client
import json
import queue
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from harness import report, seconds

from llm2comp.data import sample
from llm2comp.inference.load import load
from llm2comp.utils.hardware import retain_freed_memory

SOURCES = ("nlp-corpus-sentences", "boolq-passages")
CLIENTS = 64
TEXTS_PER_REQUEST = 8
JSON = {"Content-Type": "application/json"}


@dataclass
class Round:
    """What the clients saw."""

    seconds: float = 0
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)


def main() -> None:
    """Measure, print a table, write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--texts", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    retain_freed_memory()
    model = load(options.model, "float32")
    texts = _texts(options.texts)
    bulk, rounds, memory = [], [], []
    with _server(options.model) as port:
        _send(port, options.model, texts[: CLIENTS * TEXTS_PER_REQUEST])
        model.encode(texts[:64])
        for _ in range(options.rounds):
            bulk.append(seconds(lambda: model.encode(texts)))
            rounds.append(_send(port, options.model, texts))
            memory.append(_memory_gb(port))
    _report(len(texts), bulk, rounds, memory)


def _texts(count: int) -> list[str]:
    each = -(-count // len(SOURCES))
    texts = [text for name in SOURCES for text in sample.draw(name, each, seed=0).texts]
    order = np.random.default_rng(0).permutation(len(texts))
    return [texts[place] for place in order[:count]]


@contextmanager
def _server(model: str) -> Iterator[int]:
    """Run a server, and yield its port."""
    command = [sys.executable, "-m", "llm2comp", "serve", model, "--dtype", "float32", "--port=0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r'"addresses": \["127.0.0.1:(\d+)"', line):
                break
        else:
            raise SystemExit("the server did not start")
        threading.Thread(target=process.stderr.read, daemon=True).start()  # it must not block
        yield int(found[1])
    finally:
        process.terminate()
        process.wait()


def _send(port: int, model: str, texts: Sequence[str]) -> Round:
    """Let all clients send the texts."""
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    for start in range(0, len(texts), TEXTS_PER_REQUEST):
        body = {"model": model, "input": texts[start : start + TEXTS_PER_REQUEST]}
        requests.put(json.dumps(body | {"encoding_format": "base64"}).encode())
    done = Round()
    clients = [
        threading.Thread(target=_client, args=(port, requests, done)) for _ in range(CLIENTS)
    ]

    def run() -> None:
        for client in clients:
            client.start()
        for client in clients:
            client.join()

    done.seconds = seconds(run)
    return done


def _client(port: int, requests: "queue.SimpleQueue[bytes]", done: Round) -> None:
    """Send requests until there are no more."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    while True:
        try:
            body = requests.get_nowait()
        except queue.Empty:
            return
        start = time.perf_counter()
        while True:
            connection.request("POST", "/v1/embeddings", body, JSON)
            answer = connection.getresponse()
            answer.read()
            done.statuses[answer.status] += 1
            if answer.status != http.HTTPStatus.TOO_MANY_REQUESTS:
                break
            time.sleep(float(answer.headers["Retry-After"]))
        done.latencies.append(time.perf_counter() - start)


def _memory_gb(port: int) -> float:
    """Return the resident memory of the server."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/metrics")
    page = connection.getresponse().read().decode()
    found = re.search(r"^process_resident_memory_bytes (\S+)", page, re.MULTILINE)
    assert found is not None
    return float(found[1]) / 1e9


def _report(
    texts: int, bulk: Sequence[float], rounds: Sequence[Round], memory: Sequence[float]
) -> None:
    total = texts * len(bulk)
    statuses = sum((one.statuses for one in rounds), Counter[int]())
    latencies = np.concatenate([one.latencies for one in rounds])
    served = sum(one.seconds for one in rounds)
    rows: list[list[object]] = [
        ["bulk texts/s", total / sum(bulk)],
        ["served texts/s", total / served],
        ["served / bulk", sum(bulk) / served],
        ["served seconds", served],
        *([f"status {status}", count] for status, count in sorted(statuses.items())),
        ["median latency (s)", float(np.median(latencies))],
        ["95 % latency (s)", float(np.quantile(latencies, 0.95))],
        ["memory after the first round (GB)", memory[0]],
        ["memory after the last round (GB)", memory[-1]],
    ]
    report("serve", ["", "value"], rows)


if __name__ == "__main__":
    main()
