"""The process of a server: its signals, its log, its metrics, and what goes wrong at its start."""

import contextlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from running_server import Running, assert_problem, wait_for
from sentence_transformers import SentenceTransformer
from typer.testing import CliRunner

from llm2comp.cli.app import app
from llm2comp.errors import UserError
from llm2comp.serving import batching
from llm2comp.serving.loading import named_models
from llm2comp.serving.observation import JsonLines
from llm2comp.serving.server import bind

Start = Callable[..., Running]


def test_sigterm_answers_everything_that_was_accepted(
    folder: Path, loaded: SentenceTransformer, sentences: list[str], tmp_path: Path
) -> None:
    arguments = ["serve", f"tiny={folder}", "--port", "0", "--dtype", "float32"]
    log = tmp_path / "log.jsonl"
    process = subprocess.Popen(
        # A batch has one text, so that there is something left to do at the signal.
        [sys.executable, "-m", "llm2comp", *arguments, "--batch-size", "1"],
        stderr=log.open("w"),
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        wait_for(lambda: '"addresses"' in log.read_text(), seconds=300)
        url = "http://" + re.search(r'"addresses": \["(.+?)"', log.read_text())[1]  # type: ignore[index]
        requested = [[f"{one} {number}" for one in sentences] for number in range(32)]

        def embed(texts: list[str]) -> requests.Response:
            body = {"model": "tiny", "input": texts}
            return requests.post(f"{url}/v1/embeddings", json=body, timeout=60)

        def accepted() -> int:
            page = requests.get(f"{url}/metrics", timeout=10).text
            waiting = re.search(r'waiting_texts{model="tiny"} (\d+)', page)
            answered = re.search(r'requests_total{route="/v1/embeddings",status="200"} (\d+)', page)
            return int(waiting[1]) // 8 + (int(answered[1]) if answered else 0)  # type: ignore[index]

        with ThreadPoolExecutor(32) as pool:
            answers = [pool.submit(embed, texts) for texts in requested]
            wait_for(lambda: accepted() >= 32)
            process.send_signal(signal.SIGTERM)
            wait_for(lambda: requests.get(f"{url}/ready", timeout=10).status_code == 503)
            assert not all(answer.done() for answer in answers)  # it came in the middle
            assert requests.get(f"{url}/health", timeout=10).status_code == 200
            assert_problem(embed(["late"]), 503, "shutting down")
            for texts, answer in zip(requested, answers, strict=True):
                rows = [row["embedding"] for row in answer.result().json()["data"]]
                np.testing.assert_allclose(rows, loaded.encode(texts), atol=1e-5)
        assert process.wait(120) == 0
    finally:
        process.kill()
    written = log.read_text()
    lines = [json.loads(line) for line in written.splitlines() if line.startswith("{")]
    assert sum(line.get("route") == "/v1/embeddings" for line in lines) == 33
    assert {line["status"] for line in lines if line.get("route") == "/ready"} >= {503}
    assert not any(sentence[:20] in written for sentence in sentences)
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{url}/ready", timeout=1)


def test_a_body_that_never_comes_does_not_delay_the_end(start: Start) -> None:
    running = start(seconds=20)
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    with contextlib.ExitStack() as stack:
        connections = []
        for sent in (b"", b'{"model": "tiny", ') * 10:
            connection = socket.create_connection(("127.0.0.1", running.port), timeout=10)
            connections.append(stack.enter_context(connection))
            connection.sendall(head + b"Content-Length: 50\r\n\r\n" + sent)
        wait_for(lambda: len(running.server.server_state.tasks) == len(connections))
        begin = time.monotonic()
        running.stop()
        assert time.monotonic() - begin < 15  # it waits 20 for what was accepted
        for connection in connections:
            answer = b"".join(iter(lambda one=connection: one.recv(1000), b""))
            assert answer.startswith(b"HTTP/1.1 503")
            assert (
                "shutting down" in json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]
            )


def test_a_second_signal_ends_it_at_once(
    start: Start, hold: Callable[..., AbstractContextManager[list[str]]]
) -> None:
    running = start()
    with ThreadPoolExecutor(1) as pool, hold(running):
        answer = pool.submit(running.embed, input="a")
        wait_for(lambda: running.service.models["tiny"].batcher.waiting == 2)
        running.server.handle_exit(signal.SIGINT, None)
        wait_for(lambda: running.get("/ready").status_code == 503)
        assert not answer.done()
        running.server.handle_exit(signal.SIGINT, None)
        assert_problem(answer.result(10), 503, "the server was stopped")


def test_a_failure_is_500_and_its_log_has_no_text(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    running = start()

    def fail(_: Any, texts: list[str], *__: Any) -> None:
        raise ValueError(f"cannot embed {texts}")

    with monkeypatch.context() as patch:
        patch.setattr(batching, "embed", fail)
        assert_problem(running.embed(input="a secret"), 500, "the server failed")
        patch.setattr(batching, "embed", lambda *_: np.full((1, 32), np.nan, dtype=np.float32))
        assert_problem(running.embed(input="a secret"), 500, "--dtype float32")
    assert running.embed(input="a secret").status_code == 200
    wait_for(lambda: any(record.name == "uvicorn.error" for record in caplog.records))
    lines = [JsonLines().format(record) for record in caplog.records]
    failures = [json.loads(line) for line in lines if "ValueError" in line]
    assert failures
    assert all("test_server_process.py" in failure["at"][-1] for failure in failures)
    assert "secret" not in "".join(lines)


def test_metrics_count_requests_texts_and_tokens(
    start: Start, loaded: SentenceTransformer, caplog: pytest.LogCaptureFixture
) -> None:
    running = start()
    with caplog.at_level(logging.INFO, logger="llm2comp.serving"):
        for count in (3, 2):
            assert running.embed(input=["whales"] * count).status_code == 200
        assert running.embed(input=[]).status_code == 400
        assert running.get("/whales").status_code == 404
        page = running.get("/metrics").text
        wait_for(lambda: sum(record.msg == "request" for record in caplog.records) == 5)
    tokens = int(loaded.preprocess(["whales"] * 5)["attention_mask"].sum())
    for line in (
        'llm2comp_requests_total{route="/v1/embeddings",status="200"} 2.0',
        'llm2comp_requests_total{route="/v1/embeddings",status="400"} 1.0',
        'llm2comp_requests_total{route="other",status="404"} 1.0',
        'llm2comp_texts_total{model="tiny"} 5.0',
        f'llm2comp_tokens_total{{model="tiny"}} {float(tokens)}',
        'llm2comp_waiting_texts{model="tiny"} 0.0',
        "process_resident_memory_bytes",
    ):
        assert line in page
    fields = [record.fields for record in caplog.records if record.msg == "request"]  # type: ignore[attr-defined]
    assert [one["status"] for one in fields] == [200, 200, 400, 404, 200]
    assert "whales" not in str(fields)


def test_a_thread_that_has_ended_is_not_healthy(start: Start) -> None:
    running = start()
    running.service.close()
    assert_problem(running.get("/health"), 503, "start the server again")


def test_an_address_that_is_taken_is_one_line(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = CliRunner().invoke(app, ["serve", str(folder), "--port", str(port)])
    assert done.exit_code == 2
    assert f"127.0.0.1:{port} cannot be used" in done.output
    assert "another --port" in done.output
    with pytest.raises(UserError, match="cannot be used"):
        bind("no such host", 8000)


def test_models_get_their_names(folder: Path) -> None:
    assert named_models([str(folder), "mine=runs/a", "minilm"]) == {
        str(folder): str(folder),
        "mine": "runs/a",
        "minilm": "minilm",
    }
    with pytest.raises(UserError, match="two are named mine"):
        named_models(["mine=a", "mine=b"])
    for nameless in ("=minilm", "mine=", "="):
        with pytest.raises(UserError, match="names no model"):
            named_models([nameless])
