"""A server finds in an index what `llm2comp search` and Python find in it."""

import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from running_server import Running, assert_problem, serve_indexes, wait_for
from sentence_transformers import SentenceTransformer
from typer.testing import CliRunner

import llm2comp
from llm2comp.cli.app import app
from llm2comp.errors import UserError
from llm2comp.inference.load import load
from llm2comp.retrieval import index
from llm2comp.retrieval.index import Index
from llm2comp.serving import loading, searching
from llm2comp.serving.loading import load_all

QUERIES = ["how do whales breathe", "Roman coins", "bread"]
Start = Callable[..., Running]


@pytest.fixture
def own(notes: Path, tmp_path: Path) -> Path:
    """A copy of the index, to change."""
    return Path(shutil.copytree(notes, tmp_path / "own"))


@pytest.fixture(scope="module")
def searchable(folder: Path, notes: Path) -> Iterator[Running]:
    """A server that tests share."""
    running = serve_indexes(folder, notes)
    yield running
    running.stop()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 3},
        {"where": "n >= 3"},
        {"by": "text"},
        {"by": "hybrid", "where": "n < 6 or n is null", "top_k": 8},
    ],
    ids=str,
)
def test_it_finds_what_python_and_the_command_line_find(
    searchable: Running, notes: Path, options: dict[str, Any]
) -> None:
    answer = searchable.search(QUERIES, **options).json()
    assert answer["index"] == "notes"
    index = llm2comp.open_index(notes, dtype="float32")
    for query, found in zip(QUERIES, answer["results"], strict=True):
        wanted = index.search(query, **options)
        assert [(hit["id"], hit["text"], hit["metadata"]) for hit in found] == [
            (hit.id, hit.text, hit.metadata) for hit in wanted
        ]
        scores = [hit["score"] for hit in found]
        np.testing.assert_allclose(scores, [hit.score for hit in wanted], atol=1e-5)
    alone = searchable.search(QUERIES[1], **options).json()["results"]
    assert [hit["id"] for hit in alone[0]] == [hit["id"] for hit in answer["results"][1]]
    given = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    arguments = ["search", str(notes), QUERIES[1], "--dtype", "float32", *given]
    shown = CliRunner().invoke(app, arguments).stdout.splitlines()
    assert [line.split()[1] for line in shown] == [hit["id"] for hit in alone[0]]
    assert shown or options.get("where")


def test_the_client_of_openai(searchable: Running) -> None:
    client = openai.OpenAI(base_url=f"{searchable.url}/v1", api_key="any", max_retries=0)
    found = client.vector_stores.search("notes", query="whales", max_num_results=3)
    wanted = searchable.search("whales", top_k=3).json()["results"][0]
    assert [(hit.file_id, hit.content[0].text, hit.score, hit.attributes) for hit in found] == [
        (hit["id"], hit["text"], hit["score"], hit["metadata"]) for hit in wanted
    ]
    with pytest.raises(openai.NotFoundError, match="give one of notes"):
        client.vector_stores.search("other", query="whales")
    filters: Any = {"type": "eq", "key": "n", "value": 1}
    with pytest.raises(openai.BadRequestError, match='the field "filters" is not known'):
        client.vector_stores.search("notes", query="whales", filters=filters)


def test_indexes_are_listed_and_named(serve: Start, notes: Path, own: Path) -> None:
    running = serve(notes, own)
    listed = running.get("/indexes").json()["data"]
    assert listed[0] == {
        "name": "notes",
        "model": "tiny",
        "error": None,
        "texts": 8,
        "dimensions": 32,
        "precision": "int8",
        "vectors": 1,
        "columns": {"n": "int"},
    }
    assert [one["name"] for one in listed] == ["notes", "own"]
    assert_problem(running.search("whales"), 400, "give one of notes, own")
    assert_problem(running.search("whales", index="other"), 404, "give one of notes, own")
    assert running.search("whales", index="own").json()["index"] == "own"
    assert len(running.service.models) == 1  # they share the encoder


def test_what_another_process_changes_is_found(serve: Start, folder: Path, own: Path) -> None:
    running = serve(own)
    before = {hit["id"] for hit in running.search("whales", top_k=9).json()["results"][0]}
    other = Index(own, load(folder, "float32"))
    other.add([{"id": "new", "text": "Whales sing.", "n": 9, "lang": "en"}])
    other.delete("s0")
    found = running.search("whales", top_k=9).json()["results"][0]
    assert {hit["id"] for hit in found} == before - {"s0"} | {"new"}
    only = running.search("whales", where="lang = 'en'").json()["results"][0]
    assert [hit["metadata"] for hit in only] == [{"n": 9, "lang": "en"}]
    columns = running.get("/indexes").json()["data"][0]["columns"]
    assert columns == {"n": "int", "lang": "str"}


def test_an_index_that_was_made_anew_is_not_searched_with_the_old_encoder(
    serve: Start, folder: Path, own: Path, tmp_path: Path
) -> None:
    running = serve(own)
    shutil.rmtree(own)
    assert_problem(running.search("whales"), 503, "start the server again")
    changed = load(folder, "float32")
    changed.prompts = {"query": "other: ", "document": "other: "}
    (tmp_path / "a.txt").write_text("another text\n")
    llm2comp.index(changed, tmp_path / "a.txt", own)
    assert_problem(running.search("whales"), 503, "start the server again")
    assert_problem(running.search("whales", by="text"), 503, "start the server again")
    (listed,) = running.get("/indexes").json()["data"]
    assert listed["error"] == "it was removed, or made anew; start the server again"


def test_an_index_that_was_made_anew_with_fewer_dimensions_is_not_searched(
    serve: Start, folder: Path, own: Path, notes: Path
) -> None:
    running = serve(own, notes)
    assert running.search("whales", index="own").status_code == 200
    shutil.rmtree(own)
    (own.parent / "one.txt").write_text("A single text.\n")
    llm2comp.index(str(folder), own.parent / "one.txt", own, dim=8)
    for by in ("vector", "hybrid", "text"):
        assert_problem(running.search("whales", index="own", by=by), 503, "made anew")
    listed = {one["name"]: one for one in running.get("/indexes").json()["data"]}
    assert "made anew" in listed["own"]["error"]
    assert listed["own"]["texts"] is None
    assert listed["notes"]["error"] is None
    assert listed["notes"]["texts"] == len(Index(notes))


def test_an_index_brings_its_encoder(serve: Start, folder: Path, own: Path) -> None:
    running = serve(own, model=None)
    assert list(running.service.models) == [folder.name]
    assert running.search("whales").status_code == 200
    assert running.embed(input="whales", model=folder.name).status_code == 200


def test_the_encoder_of_an_index_is_found(
    folder: Path, loaded: SentenceTransformer, notes: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("a text\n")
    llm2comp.index(loaded, tmp_path / "a.txt", tmp_path / "unnamed")
    moved = Path(shutil.copytree(folder, tmp_path / "moved"))
    other = load(folder, "float32")
    other.prompts = {"query": "other: ", "document": "text: "}
    llm2comp.index(moved, tmp_path / "a.txt", tmp_path / "gone", dtype="float32")
    moved.rename(tmp_path / "elsewhere")
    other.save_pretrained(str(tmp_path / "other"))
    named = {"other": str(tmp_path / "other"), "mine": str(tmp_path / "elsewhere")}
    indexes = {"unnamed": str(tmp_path / "unnamed"), "gone": str(tmp_path / "gone")}
    encoders, opened = load_all(named, indexes, "float32", None)
    assert list(encoders) == ["other", "mine"]
    assert [one.model for one in opened] == ["mine", "mine"]
    with pytest.raises(UserError, match="which is not there; name the folder of that model"):
        load_all({"other": named["other"]}, indexes, "float32", None)
    with pytest.raises(UserError, match=f"two models are named {folder.name}; give one another"):
        load_all({folder.name: named["other"]}, {"notes": str(notes)}, "float32", None)


def test_an_encoder_is_loaded_once(
    folder: Path, notes: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []

    def noted(name: str, *rest: Any, **options: Any) -> SentenceTransformer:
        names.append(name)
        return load(name, *rest, **options)

    monkeypatch.setattr(loading, "load", noted)
    monkeypatch.setattr(index, "load", noted)
    indexes = {"notes": str(notes), "own": str(own)}
    for models in ({"a": str(folder)}, {}):
        load_all(models, indexes, "float32", None)
    assert names == [str(folder)] * 2


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"query": ""}, "query: string should have at least 1 character"),
        ({"query": " "}, "the query is blank"),
        ({"query": []}, "query: "),
        ({"query": 5}, "query: give a text, or a list of texts"),
        ({"query": ["a", 5]}, "item 1 of query: input should be a valid string, and it is a num"),
        ({"query": ["a"] * 2049}, "query has 2049 texts"),
        ({"query": "a" * 200_001}, "text 0 of query has 200001 characters"),
        ({"query": "a", "top_k": 0}, "top_k: "),
        ({"query": "a", "top_k": 2.5}, "top_k: "),
        ({"query": "a", "top_k": 10_001}, "at most 10000 texts"),
        ({"query": ["a"] * 101, "top_k": 100}, "top_k asks for 100 for each of 101 queries"),
        ({"query": "a", "by": "words"}, "by: "),
        (
            {"query": "a", "where": "m = 1"},
            "No field named m; the columns are id (str), text (str)",
        ),
        ({"query": "a", "where": "n = 'x'"}, "could not convert"),
        ({"query": "a", "where": "n ="}, "cannot be read at '='"),
        ({"query": "a", "where": "f(n) = 1"}, "calls f; a filter compares columns"),
        ({"query": "a", "where": "n > 1 or " * 1_200 + "true"}, "the most is 10,000"),
        ({"query": "a", "where": "n = '\ud800'"}, "cannot be used"),
        ({"query": "a", "filter": "n = 1"}, 'the field "filter" is not known'),
        ({}, "the field 'query' is missing"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_wrong_field_is_named(searchable: Running, fields: dict[str, Any], says: str) -> None:
    assert_problem(searchable.post("/search", json=fields), 400, says)


def test_the_remedy_of_a_blank_query_is_a_query(searchable: Running) -> None:
    error = searchable.search(" ").json()["error"]
    assert (error["remedy"], error["param"]) == ("say what to look for", "query")


@pytest.mark.parametrize(
    "where",
    [
        "repeat(text,1000000) = 'a'",
        "range(0,1000000000) is null",
        "levenshtein(repeat(text,500), repeat(text,501)) > 5",
        "n = ?",
        "text = $1",
        ":x = 1",
        "N'a' = text",
        "$$a$$ = text",
        "cast(n as decimal(99,2)) = 1900",
        "id = 's1') or (true",
        "n" + "+1" * 2_000 + " > 3",
        "1" + "=1" * 2_000,
        "n" + "::int" * 2_000 + " > 3",
        "n >= " + "cast(" * 70 + "1" + " as int)" * 70,
        "text" + "||id" * 2_000 + " = 'a'",
        "not " * 2_000 + "true",
        "not (" * 100 + "true" + ")" * 100,
        "(" * 4_000 + "true" + ")" * 4_000,
        "- " * 4_000 + "n > 1",
        "text like '" + "%a" * 4_000 + "'",
        "regexp_like(text, '" + "(a*)*" * 9 + "b')",
    ],
    ids=lambda where: where[:20],
)
def test_a_server_refuses_a_filter_that_would_harm_it(searchable: Running, where: str) -> None:
    answer = searchable.search("whales", where=where)
    assert_problem(answer, 400, "see Filters in docs/guides/index.md")
    assert answer.json()["error"]["param"] == "where"


def test_a_server_without_an_index_says_so(server: Running) -> None:
    assert_problem(server.search("whales"), 404, "start the server with --index DIR")
    assert server.get("/indexes").json() == {"data": []}


def test_queries_share_batches_with_texts(
    serve: Start, own: Path, hold: Callable[[Running], AbstractContextManager[list[str]]]
) -> None:
    running = serve(own)
    batcher = running.service.models["tiny"].batcher
    batches: list[int] = []
    batcher._on_batch = lambda texts, *_: batches.append(texts)
    with ThreadPoolExecutor(3) as pool:
        with hold(running) as computed:
            answers = [
                pool.submit(running.search, "whales"),
                pool.submit(running.search, ["coins", "bread"]),
                pool.submit(running.embed, input="rain", input_type="query"),
            ]
            wait_for(lambda: batcher.waiting == 5)
        assert [answer.result().status_code for answer in answers] == [200] * 3
    assert sorted(computed[1:]) == ["bread", "coins", "rain", "whales"]
    assert batches == [1, 4]


def test_searches_at_the_same_time_find_what_each_finds_alone(searchable: Running) -> None:
    cases = [
        {"query": query, "by": by, "where": where}
        for query in QUERIES
        for by in ("vector", "text", "hybrid")
        for where in (None, "n < 5")
    ]

    def found(case: dict[str, Any]) -> list[str]:
        return [hit["id"] for hit in searchable.search(**case).json()["results"][0]]

    alone = list(map(found, cases))
    with ThreadPoolExecutor(8) as pool:
        for together in pool.map(found, cases * 3), pool.map(found, cases * 3):
            assert list(together) == alone * 3


def test_a_full_queue_a_timeout_and_a_signal(
    serve: Start, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "THREADS", 1)
    running = serve(own, texts=2, waiting=2, seconds=1)
    searcher = running.service.searcher
    leave = threading.Event()
    held = [searcher.submit(partial(leave.wait, 20)) for _ in range(2)]
    assert "llm2comp_waiting_searches 2.0" in running.get("/metrics").text
    assert_problem(running.search("whales", by="text"), 429, "Retry-After")
    assert held[1].cancel()
    assert_problem(running.search("whales", by="text"), 503, "no answer within 1 second;")
    wait_for(lambda: searcher.waiting == 1)  # what took too long is not searched for
    with ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(running.search, "whales", by="text")
        wait_for(lambda: searcher.waiting == 2)
        running.server.handle_exit(15, None)
        assert_problem(running.search("coins"), 503, "shutting down")
        leave.set()
        assert accepted.result().status_code == 200
    running.thread.join(10)
    assert not running.thread.is_alive()


def test_a_request_without_a_body_that_takes_too_long_is_ended(
    serve: Start, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "THREADS", 1)
    running, leave = serve(own, seconds=0.5), threading.Event()
    running.service.searcher.submit(partial(leave.wait, 20))
    answer = running.get("/indexes")
    leave.set()
    assert_problem(answer, 503, "no answer within 0.5 seconds;")
    assert answer.headers["Retry-After"]


def test_the_client_of_a_request_without_a_body_may_leave(
    serve: Start, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "THREADS", 1)
    running, leave = serve(own, seconds=60), threading.Event()
    searcher = running.service.searcher
    searcher.submit(partial(leave.wait, 40))
    with socket.create_connection(("127.0.0.1", running.port)) as connection:
        connection.sendall(b"GET /indexes HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_for(lambda: searcher.waiting == 2)
    wait_for(lambda: searcher.waiting == 1, seconds=20)
    leave.set()
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
        connection.sendall(b"POST /search HTTP/1.1\r\nHost: a\r\n\r\n")  # its body is asked for
        assert connection.recv(1000).startswith(b"HTTP/1.1 400")


def test_numbers_that_json_does_not_have(serve: Start, folder: Path, own: Path) -> None:
    rows = [
        {"id": "inf", "text": "whales", "price": float("inf")},
        {"id": "big", "text": "a", "n": 2**62},
    ]
    Index(own, load(folder, "float32")).add(rows)
    answer = serve(own).search("whales", where="id in ('inf', 'big')")
    found = json.loads(answer.text, parse_constant=pytest.fail)["results"][0]
    metadata = {hit["id"]: hit["metadata"] for hit in found}
    assert metadata["inf"]["price"] == "Infinity"
    assert metadata["big"]["n"] == 2**62
