"""`llm2comp mine`: what it writes can be trained on, and a mistake is one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import llm2comp
from llm2comp.cli.app import app
from llm2comp.data import sources
from llm2comp.errors import counted
from llm2comp.evaluation import baselines
from llm2comp.recipe_parts import DataSource

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def encoder(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "last-token"
    baselines.build("last-token", tiny_backbone).save_pretrained(str(folder))
    return folder


@pytest.fixture
def pairs(tmp_path: Path, sentences: list[str]) -> Path:
    file = tmp_path / "pairs.jsonl"
    rows = [{"anchor": text[:20], "positive": text, "topic": "x"} for text in sentences]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return file


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def run(*arguments: object) -> tuple[int, str]:
    result = RUNNER.invoke(app, ["mine", *map(str, arguments)])
    return result.exit_code, result.output


@pytest.mark.parametrize("negatives", [1, 3])
def test_the_rows_are_read_back_as_triples(
    encoder: Path, pairs: Path, negatives: int, sentences: list[str]
) -> None:
    out = pairs.parent / "mined.jsonl"
    options = ["--negatives", negatives, "--relative-margin", 0, "--dtype", "float32"]
    status, said = run(encoder, pairs, "--out", out, *options)
    assert status == 0, said
    written = [json.loads(line) for line in out.read_text().splitlines()]
    columns = ("anchor", "positive", "negative")
    source = DataSource(source=str(out), negatives=negatives)
    read = [{c: row[c] for c in columns} for row in sources.rows(source, columns, "fail")]
    assert read == [row | {"negative": listed(row["negative"])} for row in written]
    for row in read:
        assert row["positive"].startswith(row["anchor"])
        assert set(row["negative"]) <= set(sentences) - {row["positive"]}
    full = sum(len(row["negative"]) == negatives for row in read)
    assert f"{full} of 8 pairs have {counted(negatives, 'hard negative')}" in said
    assert f"{out}: {len(written)} rows" in said
    shown = [line for line in said.splitlines() if line.startswith("query ")]
    assert len(shown) == min(3, len(written))


def test_a_corpus_is_searched_too_and_may_be_standard_input(encoder: Path, pairs: Path) -> None:
    out = pairs.parent / "mined.jsonl"
    command = [sys.executable, "-m", "llm2comp", "mine", str(encoder), str(pairs), "-"]
    options = ["--relative-margin", "0", "--negatives", "8", "--out", str(out)]
    done = subprocess.run(
        [*command, *options],
        input="Only here.\n",
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"LLM2COMP_CACHE": str(pairs.parent / "cache")},
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert any("Only here." in row["negative"] for row in rows)
    assert "queries" not in done.stdout  # bars are on standard error
    assert "queries" in done.stderr
    for raw in ("Computing similarity", "Batches", "it/s"):
        assert raw not in done.stderr


def test_a_corpus_is_all_files_of_a_folder(encoder: Path, pairs: Path) -> None:
    out, corpus = pairs.parent / "mined.jsonl", pairs.parent / "corpus"
    corpus.mkdir()
    for name in ("whales", "train-times", "test-results"):
        (corpus / f"{name}.txt").write_text(f"Only in {name}.\n")
    options = ["--relative-margin", "0", "--negatives", "10", "--out", out]
    status, said = run(encoder, pairs, corpus, *options)
    assert status == 0, said
    found = {text for line in out.read_text().splitlines() for text in json.loads(line)["negative"]}
    assert {text for text in found if text.startswith("Only in")} == {
        "Only in whales.",
        "Only in train-times.",
        "Only in test-results.",
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "mined.csv"], "are written to .jsonl files"),
        (["--out", "pairs.jsonl"], "it exists; remove it, or name another file"),
        (["--out", "-"], "name a file"),
        (["--out", "."], "it is a folder"),
        (["missing.txt", "--out", "mined.jsonl"], "missing.txt: cannot be read"),
        (["pairs.jsonl", "--out", "mined.jsonl"], "pairs.jsonl:1: no column 'text'"),
        (["--ranks", "3", "3", "--out", "mined.jsonl"], "leave 0 texts for 1 negative"),
        (
            ["--ranks", "9", "20", "--out", "mined.jsonl"],
            "no hard negative was found for any pair; lower the margins, or widen the ranks, or",
        ),
        (["--reranker", "encoder", "--out", "mined.jsonl"], "no cross-encoder"),
        (["--reranker", "no/such", "--out", "mined.jsonl"], "no/such"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    encoder: Path,
    pairs: Path,
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(pairs.parent)
    Path("encoder").symlink_to(encoder)
    before = pairs.read_bytes()
    result = RUNNER.invoke(app, ["mine", "encoder", "pairs.jsonl", *arguments])
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("llm2comp: ")]
    assert len(lines) == 1
    assert said in lines[0]
    assert sorted(path.name for path in Path().iterdir()) == ["encoder", "pairs.jsonl"]
    assert pairs.read_bytes() == before


def test_a_row_without_a_positive_is_named(encoder: Path, pairs: Path) -> None:
    with pairs.open("a") as stream:
        stream.write('{"anchor": "alone"}\n')
    status, said = run(encoder, pairs, "--out", pairs.parent / "mined.jsonl")
    assert status == 2
    assert f"{pairs}:9: no column 'positive'" in said


TRIPLES = [
    {"anchor": "first", "positive": "One.", "negative": "Bad."},
    {"anchor": "first", "positive": "One.", "negative": "Worse."},
    {"anchor": "first", "positive": "One too.", "negative": "One."},  # a positive of its query
    {"anchor": "second", "positive": "Two.", "negative": "Bad."},
]
FLAG_EMBEDDING = [
    {"query": "first", "pos": ["One.", "One too."], "neg": ["Bad.", "Worse."]},
    {"query": "second", "pos": ["Two."], "neg": ["Bad."]},
]


@pytest.mark.parametrize(
    ("rows", "own"),
    [
        (TRIPLES, {"One.": ["Bad.", "Worse."], "One too.": [], "Two.": ["Bad."]}),
        (
            FLAG_EMBEDDING,
            {"One.": ["Bad.", "Worse."], "One too.": ["Bad.", "Worse."], "Two.": ["Bad."]},
        ),
    ],
    ids=["triples", "FlagEmbedding"],
)
def test_negatives_of_the_file_are_kept_and_searched(
    encoder: Path, tmp_path: Path, rows: list[dict[str, object]], own: dict[str, list[str]]
) -> None:
    given, out = tmp_path / "given.jsonl", tmp_path / "mined.jsonl"
    given.write_text("\n".join(map(json.dumps, rows)) + "\n")
    options = {"negatives": 9, "relative_margin": 0, "dtype": "float32"}
    summary = llm2comp.mine(encoder, given, out, **options)
    model = llm2comp.load(encoder, dtype="float32")
    queries = {"One.": "first", "One too.": "first", "Two.": "second"}
    texts = ["One.", "One too.", "Two.", "Bad.", "Worse."]
    vectors = model.encode_document(texts, normalize_embeddings=True)
    expected = {}
    for positive, query in queries.items():
        cosines = dict(
            zip(texts, vectors @ model.encode_query(query, normalize_embeddings=True), strict=True)
        )
        answers = [text for text, of in queries.items() if of == query]
        known = {text for one in answers for text in own[one]}
        low = min(cosines[text] for text in answers)
        found = [t for t in texts if t not in {*answers, *known} and cosines[t] <= low]
        expected[positive] = own[positive] + sorted(found, key=lambda text: -cosines[text])
    expected = {positive: texts for positive, texts in expected.items() if texts}
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["positive"]: row["negative"] for row in written} == expected
    assert [(row.positive, row.own) for row in summary.rows] == [
        (row["positive"], own[row["positive"]]) for row in written
    ]
    had = [texts for texts in own.values() if texts]
    negatives = counted(sum(map(len, had)), "negative")
    said = f"{len(had)} had {negatives} of their own, which come first"
    assert any(line.startswith(said) for line in summary.notes())


def test_pairs_with_scores_are_refused(encoder: Path, tmp_path: Path) -> None:
    given = tmp_path / "scored.csv"
    given.write_text("anchor,positive,score\na,b,0.1\nc,d,0.9\n")
    status, said = run(encoder, given, "--out", tmp_path / "mined.jsonl")
    assert status == 2
    assert f"{given}: it has scores" in said
    assert not (tmp_path / "mined.jsonl").exists()


def test_the_prompts_of_rows_stay_beside_their_queries(
    encoder: Path, pairs: Path, sentences: list[str]
) -> None:
    """A prompt within the query would be trained with, and no client would put it there again."""
    rows = [{"query": t[:20], "pos": [t], "neg": [], "prompt": "Find: "} for t in sentences]
    pairs.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    out = pairs.parent / "mined.jsonl"
    status, said = run(encoder, pairs, "--out", out, "--relative-margin", 0, "--dtype", "float32")
    assert status == 0, said
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert written
    for row in written:
        assert row["prompt"] == "Find: "
        assert row["query"] in {text[:20] for text in sentences}
    before, after = (
        {row["positive"]: (row["anchor"], row["prompt"]) for row in read}
        for read in (
            sources.rows(DataSource(source=str(file)), ("anchor", "positive"), "fail")
            for file in (pairs, out)
        )
    )
    assert after.items() <= before.items()
