"""What a client does wrong gets its 4xx with a remedy, and the server lives."""

import json
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from running_server import Running, assert_problem, wait_for
from typer.testing import CliRunner

from llm2comp.cli.app import app
from llm2comp.errors import UserError
from llm2comp.serving.settings import Limits, read_tokens
from llm2comp.utils.choices import Prompt

Start = Callable[..., Running]
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "the field 'input' is missing"),
        ({"input": ""}, "input: string should have at least 1 character"),
        ({"input": []}, "input: "),
        ({"input": ["a", ""]}, "item 1 of input: string should have at least 1 character"),
        ({"input": 5}, "input: give a text, a list of texts, token ids, or lists of token ids"),
        ({"input": None}, "input: give a text, "),
        ({"input": {"text": "a"}}, "input: give a text, "),
        (
            {"input": ["a", 5, "b"]},
            "item 1 of input: input should be a valid string, and it is a",
        ),
        ({"input": ["a", None]}, "item 1 of input: input should be a valid string, and it is null"),
        ({"input": ["a", ["b"]]}, "item 1 of input: input should be a valid string, and it is a l"),
        ({"input": [1, 2, "a"]}, "item 2 of input: input should be a valid integer, and it is a s"),
        ({"input": [[1], ["a"]]}, "item 0 of item 1 of input: input should be a valid integer"),
        ({"input": [[1], "a"]}, "item 1 of input: input should be a valid list, and it is a str"),
        ({"input": [-1]}, "item 0 of input: input should be greater than or equal to 0"),
        ({"input": [True]}, "item 0 of input: input should be a valid string, and it is a boolean"),
        ({"input": "a", "dimensions": 0}, "dimensions: "),
        ({"input": "a", "dimensions": 33}, "have 32 dimensions"),
        ({"input": "a", "dimensions": "8"}, "dimensions: "),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format: "),
        ({"input": "a", "input_type": "passage"}, "input_type: "),
        ({"input": "a", "dimension": 8}, 'the field "dimension" is not known'),
        ({"input": "a", "model": 5}, "model: "),
        ({"input": ["a"] * 65}, "the most is 64: send them in several requests"),
        ({"input": "a" * 5001}, "text 0 of input has 5001 characters"),
        ({"input": [5] * 5001}, "has 5001 tokens"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_field_is_named(server: Running, fields: dict[str, Any], says: str) -> None:
    assert_problem(server.embed(**fields), 400, says.replace(": send", "; send"))


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/v1/embeddings", b'{"model": "tiny", "input": "a", "input": "b"}', "input"),
        ("/v1/embeddings", b'{"model": "tiny", "input": [{"a": 1, "a": 1}]}', "a"),
        ("/embed", b'{"inputs": "a", "inputs": "a"}', "inputs"),
        ("/v2/embed", b'{"model": "tiny", "model": "second", "texts": ["a"]}', "model"),
        ("/memory-tokens", b'{"model": "tiny", "text": "a", "text": "b"}', "text"),
        ("/search", b'{"query": "a", "query": "b"}', "query"),
    ],
)
def test_a_field_that_is_there_twice(server: Running, path: str, body: bytes, name: str) -> None:
    answer = server.post(path, data=body, headers=JSON)
    assert_problem(answer, 400, f'the field "{name}" is there twice')
    assert answer.json()["error"]["param"] == name


NO_OBJECT = "the body is not a JSON object"
NOT_PARSED = "There was an error parsing the body"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", NO_OBJECT),
        (b"{", NO_OBJECT),
        (b"[]", NO_OBJECT),
        (b"null", NO_OBJECT),
        (b'"text"', NO_OBJECT),
        (b'{"model": "tiny", "input": "\xff\xfe"}', NOT_PARSED),
        (b"[" * 50_000, NOT_PARSED),
        (b"\x00" * 100, NO_OBJECT),
        (b'{"model": "tiny", "input": NaN}', "input: give a text, a list of texts"),
        (b'{"model": "\\ud800", "input": "a", "\\ud800": 1}', NO_OBJECT),
        (
            b'{"model": "tiny", "input": "a lone surrogate \\ud800"}',
            "unable to parse raw data as a",
        ),
        (b'{"model": "tiny", "input": "a", "\\ud800": 1}', NO_OBJECT),
        (b'{"\\ud800": 1, "\\ud800": 2}', 'the field "\\ud800" is there twice'),
    ],
    ids=lambda value: str(value[:20]),
)
def test_a_body_that_is_no_request(server: Running, body: bytes, says: str) -> None:
    assert_problem(server.post("/v1/embeddings", data=body, headers=JSON), 400, says)


def test_a_body_of_another_type_a_wrong_path_and_a_wrong_method(server: Running) -> None:
    body = '{"model": "tiny", "input": "a"}'
    typed = server.post("/v1/embeddings", data=body, headers={"Content-Type": "text/plain"})
    assert_problem(typed, 400, "Content-Type: application/json")
    assert_problem(server.get("/v2/embeddings"), 404, "/openapi.json")
    answer = server.get("/v1/embeddings")
    assert_problem(answer, 405, "Allow")
    assert answer.headers["Allow"] == "POST"
    assert_problem(server.embed(input="a", model="\ud800other"), 404, "give one of tiny, second")


def test_a_large_body_is_refused_before_it_is_sent(server: Running) -> None:
    assert_problem(server.embed(input="a" * 1_000_000), 413, "more than 100000 bytes")
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: 1000000\r\nExpect: 100-continue\r\n\r\n"  # as curl does
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head)
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")


def test_an_endless_body_is_refused_and_then_cut(start: Start) -> None:
    running = start(body=10_000, idle_seconds=0.5)
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        begin = time.monotonic()
        with pytest.raises(OSError, match="reset|Broken pipe"):  # noqa: PT012
            while time.monotonic() < begin + 10:
                connection.sendall(b"3e8\r\n" + b" " * 1000 + b"\r\n")
                time.sleep(0.001)
    assert time.monotonic() - begin > 0.4  # so that the answer is read before
    assert running.embed(input="a").status_code == 200


def test_a_text_of_a_megabyte_is_refused_by_default(start: Start) -> None:
    assert_problem(start().embed(input="a" * 1_000_000), 400, "has 1000000 characters")


def test_a_token_is_needed_except_by_what_runs_the_server(start: Start) -> None:
    running = start(tokens=(b"one-token", b"another"))
    for header in (None, "", "Bearer", "Bearer one", "Bearer one-token2", "Basic one-token", "ä"):
        headers = {} if header is None else {"Authorization": header.encode()}
        for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
            assert_problem(running.get(path, headers=headers), 401, "Authorization: Bearer TOKEN")
    for token in ("one-token", "another"):
        headers = {"Authorization": f"Bearer {token}"}
        assert running.get("/v1/models", headers=headers).status_code == 200
    assert running.get("/health").status_code == running.get("/ready").status_code == 200


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"# none\n\n", "it has no token"),
        (b"good\nnot good\n", "line 2: a token has only"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_wrong_file_of_tokens_is_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "tokens.txt").write_bytes(content)
    with pytest.raises(UserError, match=says) as error:
        read_tokens(tmp_path / "tokens.txt")
    assert "not good" not in str(error.value)
    (tmp_path / "tokens.txt").write_text("# ours\none\n\n two \n")
    assert read_tokens(tmp_path / "tokens.txt") == (b"one", b"two")


def test_a_queue_that_no_request_fits_is_refused() -> None:
    with pytest.raises(UserError, match="--max-waiting 10 is below --max-texts 11"):
        Limits(waiting=10, texts=11)


@pytest.mark.parametrize("option", ["--timeout", "--keep-alive"])
@pytest.mark.parametrize("seconds", ["inf", "nan", "9999999"])
def test_a_time_that_no_clock_takes_is_refused(option: str, seconds: str) -> None:
    name = {"--timeout": "seconds", "--keep-alive": "idle_seconds"}[option]
    with pytest.raises(UserError, match=f"{option} .*at most 1,000,000"):
        Limits(**{name: float(seconds)})
    Limits(**{name: 1_000_000})
    called = CliRunner().invoke(app, ["serve", "no-model", option, seconds])
    assert called.exit_code == 2
    (line,) = called.output.splitlines()  # before any load
    assert line.startswith("llm2comp: ")
    assert option in line


def test_a_full_queue_says_when_to_come_again(start: Start, hold: Callable[..., Any]) -> None:
    running = start(texts=4, waiting=6)
    with ThreadPoolExecutor(1) as pool, hold(running):
        first = pool.submit(running.embed, input=["a"] * 4)
        wait_for(lambda: running.service.models["tiny"].batcher.waiting == 5)
        answer = running.embed(input=["b"] * 3)
    assert_problem(answer, 429, "Retry-After")
    assert int(answer.headers["Retry-After"]) >= 1
    assert first.result().status_code == 200
    assert running.embed(input=["b"] * 3).status_code == 200


@pytest.mark.parametrize("prompt", [None, "query"])
def test_a_large_request_does_not_hold_up_a_small_one(
    start: Start, hold: Callable[..., Any], prompt: Prompt | None
) -> None:
    running = start()
    batcher = running.service.models["tiny"].batcher
    batcher._batch_size = 1  # 64 tokens, so the large request takes many batches
    with hold(running) as computed:
        large = batcher.submit(["a sea"] * 60, None)
        small = batcher.submit(["a bay"], prompt)
    assert small.result(60).embeddings.shape == (1, 32)
    assert large.result(60).embeddings.shape == (60, 32)
    assert len(computed) == 62
    assert computed.index("a bay") < 30


def test_a_request_that_takes_too_long_is_ended(start: Start, hold: Callable[..., Any]) -> None:
    running = start(seconds=0.3)
    with hold(running) as computed:
        answer = running.embed(input="late")
        assert_problem(answer, 503, "no answer within 0.3 seconds")
        assert answer.headers["Retry-After"]
        wait_for(lambda: running.service.models["tiny"].batcher.waiting == 1)
    assert running.embed(input="in time").status_code == 200
    assert computed == ["held", "in time"]


def test_what_a_client_no_longer_waits_for_is_not_computed(
    start: Start, hold: Callable[..., Any]
) -> None:
    running = start()
    body = b'{"model": "tiny", "input": "left"}'
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    with hold(running) as computed:
        with socket.create_connection(("127.0.0.1", running.port)) as connection:
            connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            wait_for(lambda: running.service.models["tiny"].batcher.waiting == 2)
        wait_for(lambda: running.service.models["tiny"].batcher.waiting == 1)
    assert running.embed(input="stayed").status_code == 200
    assert computed == ["held", "stayed"]


def test_slow_and_silent_clients_stop_nobody(start: Start) -> None:
    running = start(seconds=3, idle_seconds=2)
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    beginnings = [b"", b"POST /v1", head, head + b"Content-Length: 50\r\n\r\n", b"\x16\x03\x01"]
    connections = []
    for number in range(100):
        connections.append(socket.create_connection(("127.0.0.1", running.port), timeout=10))
        connections[-1].sendall(beginnings[number % len(beginnings)])
    assert running.embed(input="a").status_code == 200
    ends = [b"".join(iter(lambda one=one: one.recv(1000), b"")) for one in connections]
    for number, end in enumerate(ends):  # every connection was closed by the server
        expected = (b"", b"", b"", b"HTTP/1.1 408", b"HTTP/1.1 400")[number % len(beginnings)]
        assert end.startswith(expected)
        assert bool(end) == bool(expected)
        assert not end or json.loads(end.partition(b"\r\n\r\n")[2])["error"]["remedy"]
    for connection in connections:
        connection.close()
    assert running.embed(input="a").status_code == 200


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux has it")
def test_a_client_that_does_not_read_its_answer_is_cut_off(start: Start) -> None:
    running = start(seconds=2)
    running.listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # accepted ones too
    body = json.dumps({"model": "tiny", "input": ["a"] * 400}).encode()
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", running.port))
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        wait_for(lambda: len(running.server.server_state.connections) == 1)
        wait_for(lambda: not running.server.server_state.connections, seconds=20)
