"""An index lasts: it is brought up to date, continued, searched, and refuses what does not fit."""

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from sentence_transformers import SentenceTransformer
from typer.testing import CliRunner

from llm2comp.cli.app import app
from llm2comp.errors import UserError
from llm2comp.evaluation import baselines
from llm2comp.inference.search import search
from llm2comp.retrieval import index as indexing
from llm2comp.retrieval.index import Changes, Index, build

Encoded = list[str]


@pytest.fixture
def corpus(tmp_path: Path, sentences: list[str]) -> Path:
    rows = [{"id": f"s{n}", "text": text, "n": n} for n, text in enumerate(sentences)]
    file = tmp_path / "corpus.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Encoded]:
    """The texts that were encoded as documents, in order; the fixed ones left out."""
    texts: Encoded = []
    embed = indexing.embed

    def noted(model: Any, given: list[str], batch: int, prompt: str | None) -> Any:
        if prompt == "document" and given != list(indexing.TEXTS):
            texts.extend(given)
        return embed(model, given, batch, prompt)

    monkeypatch.setattr(indexing, "embed", noted)
    return texts


def test_hits_are_those_of_a_search_in_the_file(
    model: SentenceTransformer, corpus: Path, tmp_path: Path, sentences: list[str]
) -> None:
    index, changes = build(model, str(corpus), tmp_path / "index")
    assert changes == Changes(8, 0, 0)
    assert len(index) == 8
    for query in sentences[:3]:
        wanted = search(model, corpus, query, top_k=5)
        found = Index(tmp_path / "index", model).search(query, 5)
        assert [(hit.id, hit.text, hit.metadata) for hit in found] == [
            (f"s{hit.row}", hit.text, {"n": hit.row}) for hit in wanted
        ]
        np.testing.assert_allclose(
            [hit.score for hit in found], [hit.score for hit in wanted], atol=1e-5
        )


def test_prompts_are_those_of_queries_and_documents(
    model: SentenceTransformer, corpus: Path, tmp_path: Path, prompts: Callable[..., None]
) -> None:
    prompts(query="Question: ", document="Passage: ")
    build(model, str(corpus), tmp_path / "index")
    wanted = search(model, corpus, "whales", top_k=1)[0]
    assert Index(tmp_path / "index", model).search("whales", 1)[0].id == f"s{wanted.row}"
    for other in ({"document": "Passage: "}, {"query": "Question: "}, {}):
        prompts(**other)
        with pytest.raises(UserError, match="another encoder, or another prompt"):
            Index(tmp_path / "index", model).search("whales")


def test_another_encoder_is_refused(
    model: SentenceTransformer, tiny_backbone: Path, corpus: Path, tmp_path: Path
) -> None:
    build(model, str(corpus), tmp_path / "index")
    other = baselines.build("last-token", tiny_backbone)
    with pytest.raises(UserError, match="another encoder, or another prompt"):
        Index(tmp_path / "index", other).search("whales")
    with pytest.raises(UserError, match="another encoder, or another prompt"):
        build(other, str(corpus), tmp_path / "index")
    with pytest.raises(UserError, match="leave these options out"):
        build(model, str(corpus), tmp_path / "index", dim=8)
    with pytest.raises(UserError, match="was made with a loaded model"):
        Index(tmp_path / "index").search("whales")


def test_only_what_changed_is_encoded_again(
    model: SentenceTransformer, corpus: Path, tmp_path: Path, encoded: Encoded
) -> None:
    build(model, str(corpus), tmp_path / "index")
    rows = [json.loads(line) for line in corpus.read_text().splitlines()]
    rows[2]["text"] = "Another text about whales."
    rows[3]["n"] = 33
    rows[5:6] = [{"id": "new", "text": "A new text.", "n": 100, "lang": "en"}]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    encoded.clear()
    index, changes = build(model, str(corpus), tmp_path / "index")
    assert changes == Changes(added=1, updated=2, unchanged=5)
    assert encoded == [rows[2]["text"], rows[3]["text"], "A new text."]
    assert len(index) == 9  # what is no longer in the corpus stays
    assert index.search(rows[2]["text"], 1)[0].id == "s2"
    assert [hit.metadata for hit in index.search("x", 9, where="n = 33")] == [
        {"n": 33, "lang": None}
    ]
    assert [hit.id for hit in index.search("x", 9, where="lang = 'en'")] == ["new"]


def test_the_same_call_continues_one_that_was_stopped(
    model: SentenceTransformer,
    corpus: Path,
    tmp_path: Path,
    encoded: Encoded,
    sentences: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(indexing, "CHUNK", 3)
    put = indexing.Store.put

    def stopping(self: Any, rows: Any, *rest: Any) -> None:
        if rows[0].id == "s6":
            raise KeyboardInterrupt
        put(self, rows, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(indexing.Store, "put", stopping)
        with pytest.raises(KeyboardInterrupt):
            build(model, str(corpus), tmp_path / "index")
    assert len(Index(tmp_path / "index", model)) == 6
    encoded.clear()
    index, changes = build(model, str(corpus), tmp_path / "index")
    assert encoded == sentences[6:]
    assert (len(index), changes) == (8, Changes(2, 0, 6))


def test_add_and_delete_by_id(model: SentenceTransformer, corpus: Path, tmp_path: Path) -> None:
    index, _ = build(model, str(corpus), tmp_path / "index")
    rows = [{"id": "it's", "text": "Whales sing."}, {"id": "s0", "text": "New.", "n": 0}]
    assert index.add(rows) == Changes(added=1, updated=1, unchanged=0)
    assert index.search("Whales sing.", 1)[0].id == "it's"
    assert index.delete(["it's", "s0", "absent"]) == 2
    assert index.delete("it's") == 0
    assert index.delete([]) == 0
    index.add([{"id": number, "text": f"Number {number}."} for number in (1, 2, 3)])
    assert (index.delete(1), index.delete([2, "3"])) == (1, 2)
    found = {hit.id for hit in index.search("Whales sing.", 99)}
    assert found == {f"s{n}" for n in range(1, 8)}
    for bad in ([{"id": "a", "text": "x"}, {"id": "b"}], [{"id": "a", "text": "x", "n": "one"}]):
        with pytest.raises(UserError):
            index.add(bad)
    assert len(index) == 7


def test_shorter_vectors_are_truncated(
    model: SentenceTransformer, corpus: Path, tmp_path: Path, sentences: list[str]
) -> None:
    index, _ = build(model, str(corpus), tmp_path / "index", dim=8)
    whole = model.encode([sentences[1], sentences[4]])[:, :8]
    one, other = whole / np.linalg.norm(whole, axis=1, keepdims=True)
    score = next(hit.score for hit in index.search(sentences[1], 8) if hit.id == "s4")
    assert score == pytest.approx(float(one @ other), abs=1e-5)


def test_words_and_both(model: SentenceTransformer, corpus: Path, tmp_path: Path) -> None:
    index, _ = build(model, str(corpus), tmp_path / "index")
    assert [hit.id for hit in index.search("Roman coins", by="text")] == ["s6"]
    assert index.search("Roman coins", by="text", where="n < 6") == []
    both = {hit.id: hit.score for hit in index.search("Roman coins", 8, by="hybrid")}
    wanted = {hit.id: 1 / (61 + rank) for rank, hit in enumerate(index.search("Roman coins", 8))}
    wanted["s6"] += 1 / 61  # it is first by words
    assert both == pytest.approx(wanted)
    assert next(iter(both)) == max(wanted, key=lambda one: wanted[one])


def test_the_first_ten_are_the_same_however_many_are_asked_for(
    model: SentenceTransformer, tmp_path: Path
) -> None:
    words = ["whales", "coins", "bread", "rain", "music", "snow", "ships", "maps"]
    texts = [f"{words[n % 8]} {words[n % 7]} {n}" for n in range(200)]
    index, _ = build(model, _lines(tmp_path / "texts.txt", texts), tmp_path / "index")
    for query in ("whales and coins", "snow maps 17"):
        found = [[hit.id for hit in index.search(query, n, by="hybrid")] for n in (1, 10, 30, 50)]
        for fewer in found[:3]:
            assert fewer == found[3][: len(fewer)]


def _lines(file: Path, texts: list[str]) -> str:
    file.write_text("".join(f"{text}\n" for text in texts))
    return str(file)


def test_standard_input_replaces_no_other_text(
    model: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(text: str) -> Changes:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        return build(model, "-", tmp_path / "index")[1]

    assert read("one\ntwo\n") == Changes(2, 0, 0)
    assert read("one\ntwo\nthree\n") == Changes(1, 0, 2)  # as after a stop
    with pytest.raises(UserError, match="-:2 is another text in the index"):
        read("one\nother\n")
    index = Index(tmp_path / "index", model)
    assert [hit.text for hit in index.search("x", 9, where="id = '-:2'")] == ["two"]
    assert index.add([{"id": "-:2", "text": "changed by its id"}]) == Changes(0, 1, 0)


def test_an_index_says_nothing_of_its_clusters(tmp_path: Path) -> None:
    code = (Path(__file__).parent / "makes_clusters.py").read_text()
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


def test_mistakes_are_one_line(model: SentenceTransformer, corpus: Path, tmp_path: Path) -> None:
    index, _ = build(model, str(corpus), tmp_path / "index")
    for where, said in (
        ("m = 1", "No field named m"),
        ("n =", "cannot be read at '='; a filter compares columns .* see Filters in docs"),
        ("n = 'x'", "'x'"),
        (
            "text = 5",
            r"Received literal Int64\(5\).*columns are id \(str\), text \(str\), n \(int\)",
        ),
        ("id = s1", "No field named s1; .*a string has 'single quotes'"),
        ("f(n) > 1", "calls f;"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            index.search("whales", where=where)
        assert "\n" not in str(caught.value)
        assert "cargo" not in str(caught.value)
    with pytest.raises(UserError, match="blank"):
        index.search(" ")
    for count in (0, 2.5, True, "5"):
        with pytest.raises(UserError, match="whole number of at least 1"):
            index.search("x", count)  # type: ignore[arg-type]
    for query, where, said in ((5, None, "query is of type int"), ("x", 5, "filter 5 is no str")):
        with pytest.raises(UserError, match=said):
            index.search(query, where=where)  # type: ignore[arg-type]
    for ids in (2.5, [None], [True], [["s1"]]):
        with pytest.raises(UserError, match="the id must be a string or an integer|of type"):
            index.delete(ids)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="row 0: is of type str; give a dict"):
        index.add(["a text"])  # type: ignore[list-item]
    with pytest.raises(UserError, match="by 'words' is not one of"):
        index.search("x", by="words")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="holds no index"):
        Index(tmp_path / "absent")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(UserError, match=r"holds something else \(notes.txt\)"):
        build(model, str(corpus), tmp_path / "other")
    with FileLock(tmp_path / "index" / "writer.lock"):
        with pytest.raises(UserError, match="another process changes this index"):
            index.delete("s1")
        assert len(index.search("whales")) == 5


def test_the_commands(
    model: SentenceTransformer, corpus: Path, tmp_path: Path, sentences: list[str]
) -> None:
    encoder, folder = tmp_path / "encoder", tmp_path / "index"
    model.save_pretrained(str(encoder))

    def run(*arguments: object, status: int = 0) -> str:
        result = CliRunner().invoke(app, [str(one) for one in arguments])
        assert result.exit_code == status, result.output
        return result.stdout if status == 0 else result.output.strip().splitlines()[-1]

    made = run("index", encoder, corpus, "--out", folder)
    assert made == f"{folder}: 8 texts (8 added, 0 updated, 0 unchanged)\n"
    assert run("search", folder, sentences[5], "--top-k", 1) == f"1.000  s5  {sentences[5]}\n"
    assert run("search", encoder, folder, sentences[5], "--top-k", 1).startswith("1.000  s5")
    assert run("search", folder, "Roman coins", "--by", "text", "--where", "n < 6") == ""
    gone = run("delete", folder, "s5", "absent")
    assert gone == f"{folder}: deleted 1 of 2; 7 texts are left\n"
    assert "s5" not in run("search", folder, sentences[5], "--top-k", 9)
    gone = run("delete", folder, "-:1", "s6")  # the first is the id of a line of standard input
    assert gone == f"{folder}: deleted 1 of 2; 6 texts are left\n"
    assert run("delete", folder, "--", "-:1") == f"{folder}: deleted 0 of 1; 6 texts are left\n"
    for mistake in ("--dry", "-n", "-:x"):
        assert "No such option" in run("delete", folder, mistake, "s7", "-:1", status=2)
    for arguments, said in (
        (["search", corpus, "whales"], "holds no index"),
        (["search", folder], "give DIR QUERY for an index, or MODEL FILE QUERY"),
        (["search", folder, "whales", "--dim", 4], "--precision and --vectors are for files"),
        (["search", encoder, corpus, "whales", "--by", "text"], "are for an index"),
        (["search", folder, "whales", "--where", "n = ?"], "'n = ?' has '?' at character 5"),
        (["delete", tmp_path / "absent", "s1"], "holds no index"),
        (["delete", folder, ""], "the id must be a string or an integer; it is ''"),
        (["index", encoder, "absent.jsonl", "--out", folder], "absent.jsonl"),
        (["index", encoder, tmp_path / "none", "--out", folder], "no such file or folder"),
    ):
        assert said in run(*arguments, status=2)
    assert not (tmp_path / "absent").exists()
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "x"}\n{"text": 5}\n')
    said = run("index", encoder, bad, "--out", tmp_path / "new", status=2)
    assert said.startswith(f"llm2comp: {bad}:2: 'text' is not a string")
    assert not (tmp_path / "new").exists()
