"""Files of one's own to evaluate on: their scores, how they are stored, and bad lines."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from typer.testing import CliRunner

from llm2comp.api import evaluate
from llm2comp.cli.app import app
from llm2comp.errors import UserError
from llm2comp.evaluation import baselines, runner
from llm2comp.evaluation.own_data.tasks import OwnData, read_all
from llm2comp.evaluation.store import ResultStore

QUERIES = ["how is code translated", "where does the river rise", "what grew behind the house"]


@pytest.fixture(scope="module")
def model(tiny_backbone: Path) -> SentenceTransformer:
    built = baselines.build("weighted-mean", tiny_backbone)
    built.prompts = {"query": "Question: ", "document": ""}
    return built


def jsonl(file: Path, rows: list[dict[str, object]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


def beir(folder: Path, corpus: list[str], judgements: list[tuple[str, str, int]]) -> Path:
    queries: list[dict[str, object]] = [
        {"_id": f"q{n}", "text": text} for n, text in enumerate(QUERIES)
    ]
    jsonl(folder / "queries.jsonl", queries)
    documents: list[dict[str, object]] = [
        {"_id": f"d{n}", "title": f"Title {n}", "text": text, "metadata": {}}
        for n, text in enumerate(corpus)
    ]
    jsonl(folder / "corpus.jsonl", documents)
    (folder / "qrels").mkdir()
    lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, line)) for line in judgements)]
    (folder / "qrels" / "dev.tsv").write_text("\n".join(lines) + "\n")
    return folder


def ndcg(
    model: SentenceTransformer, queries: list[str], corpus: list[str], grades: list[dict[int, int]]
) -> float:
    """Return nDCG@10 in percent by its definition (Järvelin and Kekäläinen, 2002)."""
    similarity = model.encode_query(queries) @ model.encode_document(corpus).T
    gains = []
    for row, grade in zip(similarity, grades, strict=True):
        found = [grade.get(int(place), 0) for place in np.argsort(-row)[:10]]
        best = sorted(grade.values(), reverse=True)[:10]
        gain, ideal = (
            sum(value / np.log2(rank + 2) for rank, value in enumerate(one))
            for one in (found, best)
        )
        gains.append(gain / ideal)
    return 100 * float(np.mean(gains))


def test_pairs_are_a_search_among_all_distinct_positives(
    model: SentenceTransformer, sentences: list[str], tmp_path: Path
) -> None:
    rows = [(QUERIES[0], sentences[0]), (QUERIES[1], sentences[1]), (QUERIES[2], sentences[2])]
    rows += [(QUERIES[0], sentences[3])]  # a second answer, which is not its negative
    rows += [(f"more {n}", text) for n, text in enumerate(sentences[3:])]
    file = jsonl(tmp_path / "dev.jsonl", [{"anchor": a, "positive": p} for a, p in rows])
    score = runner.main_score(model, OwnData(file).task())
    queries = [*QUERIES, *(f"more {n}" for n in range(5))]
    grades = [{0: 1, 3: 1}, {1: 1}, {2: 1}, *({n: 1} for n in range(3, 8))]
    assert score == pytest.approx(ndcg(model, queries, sentences, grades), abs=1e-3)


def test_a_folder_of_beir_has_grades_titles_and_documents_that_answer_nothing(
    model: SentenceTransformer, sentences: list[str], tmp_path: Path
) -> None:
    judged = [("q0", "d0", 2), ("q0", "d3", 1), ("q1", "d1", 1), ("q1", "d2", 0)]
    folder = beir(tmp_path / "mine", sentences, judged)
    data = OwnData(folder)
    corpus = [f"Title {n} {text}" for n, text in enumerate(sentences)]
    expected = ndcg(model, QUERIES[:2], corpus, [{0: 2, 3: 1}, {1: 1}])
    assert runner.main_score(model, data.task()) == pytest.approx(expected, abs=1e-3)
    assert data.name.startswith("mine-dev@")
    assert runner.main_score(model, OwnData(folder / "qrels" / "dev.tsv").task()) == pytest.approx(
        expected, abs=1e-3
    )


def test_scored_pairs_are_ranked(
    model: SentenceTransformer, sentences: list[str], tmp_path: Path
) -> None:
    scores = [0.5, 3, 3, -1, 2, 7, 1]
    rows: list[dict[str, object]] = [
        {"anchor": sentences[0], "positive": text, "score": score}
        for text, score in zip(sentences[1:], scores, strict=True)
    ]
    one, other = model.encode(sentences[:1]), model.encode(sentences[1:])
    expected = 100 * float(spearmanr((one * other).sum(1), scores).statistic)
    found = runner.main_score(model, OwnData(jsonl(tmp_path / "s.jsonl", rows)).task())
    assert found == pytest.approx(expected, abs=1e-3)


def test_a_stored_score_is_of_its_content(
    model: SentenceTransformer, sentences: list[str], tmp_path: Path
) -> None:
    rows: list[dict[str, object]] = [{"anchor": t[:9], "positive": t} for t in sentences]
    results = ResultStore(tmp_path / "scores")
    names = set()
    for file in ("a/dev.jsonl", "b/dev.jsonl", "a/dev.jsonl"):
        # The third time, the file has another row.
        more = [{"anchor": "new", "positive": "A new row."}] if len(names) == 1 else []
        data = OwnData(jsonl(tmp_path / file, [*rows, *(more if file[0] == "a" else [])]))
        (score,) = runner.evaluate(model, "tiny", [data.task()], results)
        assert score.samples == len(data.rows.queries)  # type: ignore[union-attr]
        names.add(score.task)
    assert len(names) == 2
    assert len(list((tmp_path / "scores").rglob("*.json"))) == 2


def pairs(*rows: dict[str, object]) -> Callable[[Path, list[str]], Path]:
    return lambda folder, _: jsonl(folder / "dev.jsonl", list(rows))


def text(name: str, content: str) -> Callable[[Path, list[str]], Path]:
    def write(folder: Path, _: list[str]) -> Path:
        (folder / name).write_text(content)
        return folder / name

    return write


def broken_beir(file: str, line: str) -> Callable[[Path, list[str]], Path]:
    def write(folder: Path, sentences: list[str]) -> Path:
        mine = beir(folder / "mine", sentences, [("q0", "d0", 1)])
        with (mine / file).open("a") as stream:
            stream.write(line)
        return mine

    return write


def second_split(folder: Path, sentences: list[str]) -> Path:
    mine = beir(folder / "mine", sentences, [("q0", "d0", 1)])
    (mine / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n")
    return mine


GOOD: dict[str, object] = {"anchor": "a", "positive": "p"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (pairs(), "dev.jsonl: there are no rows in it"),
        (pairs(GOOD, {"anchor": "a"}), "dev.jsonl:2: no column 'positive'"),
        (pairs(GOOD, {"anchor": " ", "positive": "p"}), "dev.jsonl:2: column 'anchor' is empty"),
        (pairs(GOOD, GOOD | {"score": 1}), "dev.jsonl:2: has a score, and the first row has none"),
        (pairs(GOOD | {"score": 1}, GOOD), "dev.jsonl:2: has no score"),
        (pairs(GOOD | {"score": "x"}), "dev.jsonl:1: column 'score' holds 'x', not a number"),
        (pairs(GOOD | {"score": 1}, GOOD | {"score": 1.0}), "dev.jsonl: all 2 scores are equal"),
        (pairs(GOOD, GOOD | {"anchor": "b"}), "dev.jsonl: all rows have one positive"),
        (text("dev.csv", "anchor,positive\na,p\nb\n"), "dev.csv:3: 1 field where the header has"),
        (text("dev.jsonl", "{}\nnot JSON\n"), "dev.jsonl:1: no column 'anchor'"),
        (text("dev.txt", "text\n"), "dev.txt: cannot be evaluated on; give a file of pairs"),
        (lambda folder, _: folder / "no.jsonl", "no.jsonl: cannot be read: No such file"),
        (lambda folder, _: folder, "there is no qrels/*.tsv"),
        (second_split, "qrels has dev.tsv, test.tsv; name the file that is meant"),
        (broken_beir("queries.jsonl", "{}\n"), "queries.jsonl:4: no '_id'"),
        (broken_beir("queries.jsonl", '{"_id": "q0", "text": "t"}\n'), "queries.jsonl:4: the _id"),
        (broken_beir("queries.jsonl", '{"_id": "q9", "text": ""}\n'), "queries.jsonl:4: column 't"),
        (broken_beir("corpus.jsonl", '{"_id": "d9"}\n'), "corpus.jsonl:9: column 'text' holds Non"),
        (broken_beir("qrels/dev.tsv", "q7\td0\t1\n"), "dev.tsv:3: there is no query 'q7'"),
        (broken_beir("qrels/dev.tsv", "q0\tx\t1\n"), "dev.tsv:3: there is no document 'x'"),
        (broken_beir("qrels/dev.tsv", "q0\td0\t1\n"), "dev.tsv:3: 'q0' and 'd0' are judged twice"),
        (broken_beir("qrels/dev.tsv", "q0 d1 1\n"), "dev.tsv:3: 'q0 d1 1' is not a query, a docum"),
        (broken_beir("qrels/dev.tsv", "q0\td1\t0.5\n"), "dev.tsv:3: 'q0\\td1\\t0.5' is not a quer"),
    ],
)
def test_a_bad_line_is_named(
    make: Callable[[Path, list[str]], Path], message: str, sentences: list[str], tmp_path: Path
) -> None:
    path = make(tmp_path, sentences)
    with pytest.raises(UserError) as caught:
        OwnData(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_document_without_text_and_a_header_with_carriage_returns_are_read(
    sentences: list[str], tmp_path: Path
) -> None:
    folder = beir(tmp_path / "mine", ["", *sentences], [("q0", "d0", 1)])
    qrels = folder / "qrels" / "dev.tsv"
    qrels.write_bytes(qrels.read_bytes().replace(b"\n", b"\r\n"))
    assert len(OwnData(folder).rows.corpus) == 9  # type: ignore[union-attr]


def test_one_file_is_not_scored_twice(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "dev.jsonl", [GOOD, {"anchor": "b", "positive": "q"}])
    assert [data.path for data in read_all(str(file))] == [file]
    with pytest.raises(UserError, match="is the same as"):
        read_all([file, file])


def test_the_command_scores_a_file(
    tiny_backbone: Path, sentences: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "encoder"
    baselines.build("weighted-mean", tiny_backbone).save_pretrained(str(folder))
    file = jsonl(tmp_path / "dev.jsonl", [{"anchor": t[:9], "positive": t} for t in sentences])
    out = str(tmp_path / "scores")
    done = CliRunner().invoke(app, ["evaluate", str(folder), "--data", str(file), "--out", out])
    assert done.exit_code == 0, done.output
    expected = OwnData(file)
    ((score,),) = evaluate([folder], data=file, out=out).values()
    model = SentenceTransformer(str(folder))
    assert score.main_score == pytest.approx(runner.main_score(model, expected.task()), abs=0.1)
    assert (score.task, score.metric) == (expected.name, "ndcg_at_10")
    assert (score.samples, score.texts) == (8, 16)
    assert expected.name in done.output
    assert f"{score.main_score:.1f}" in done.output


def test_several_files_and_named_tasks_are_scored_by_one_command(
    tiny_backbone: Path, sentences: list[str], tmp_path: Path, sets: object
) -> None:
    folder, out = tmp_path / "encoder", tmp_path / "scores"
    baselines.build("weighted-mean", tiny_backbone).save_pretrained(str(folder))
    command = ["evaluate", str(folder), "--tasks", "STS17", "--out", str(out)]
    expected = {"STS17"}
    for end in (9, 5):
        rows: list[dict[str, object]] = [{"anchor": t[:end], "positive": t} for t in sentences]
        file = jsonl(tmp_path / f"{end}.jsonl", rows)
        command += ["--data", str(file)]
        expected.add(OwnData(file).name)
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert {result.score.task for result in ResultStore(out).all()} == expected
    assert len(expected) == 3
    assert all(name in done.output for name in expected)
