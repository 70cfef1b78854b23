"""Read a file of pairs or of scored pairs to evaluate on."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from llm2comp.data import files
from llm2comp.data.drawn.distinct import digest
from llm2comp.data.files import BadRow
from llm2comp.data.formats.cells import Cells
from llm2comp.data.formats.layouts import Layout
from llm2comp.data.sources import SCORE, is_given, problem_of_value
from llm2comp.errors import UserError, listed
from llm2comp.evaluation.own_data.rows import Retrieval, Scored

TEXTS = ("anchor", "positive")
LAYOUT = Layout({name: name for name in (*TEXTS, SCORE)})
"""The columns that are read; `positive` may be numbered."""

NumberedPair = tuple[int, Mapping[str, object]]


def read_pairs(path: Path) -> Retrieval | Scored:
    """Read a .jsonl, .csv or .parquet file with the columns `anchor`, `positive` and maybe `score`.

    Without scores, each anchor is a query, and all distinct positives of the file are searched. An
    anchor may be in several rows, or have a list of positives or numbered columns of them: each of
    them answers it. Texts that differ in their form of Unicode alone are one text.

    Raises:
        UserError: if the file cannot be read, a row is bad (the message names its line), or a score
            on these rows would say nothing.
    """
    pairs = _good_rows(path)
    first = next(pairs, None)
    if first is None:
        raise UserError(f"{path}: there are no rows in it")
    scored = is_given(first[1].get(SCORE))
    rows = _of_one_kind(path, first, pairs, scored=scored)
    return _scored(path, rows) if scored else _retrieval(path, rows)


def _good_rows(path: Path) -> Iterator[NumberedPair]:
    names = files.column_names(path)
    rows = files.read(path, None if names is None else LAYOUT.among(names))
    if files.kind_of(path) == ".csv":
        rows = Cells(str(path), LAYOUT.lists, announced=True).read(rows)
    for number, row in rows:
        if isinstance(row, BadRow):
            raise UserError(f"{path}:{number}: {row.reason}")
        values = LAYOUT.read(row)
        problem = _problem(values, row)
        if problem is not None:
            raise UserError(f"{path}:{number}: {problem}")
        yield number, values


def _problem(values: Mapping[str, object], row: Mapping[str, object]) -> str | None:
    for column in TEXTS:
        if column not in values:
            return (
                f"no column {column!r} among {listed(row) or 'none'}; a file to "
                "evaluate on has anchor and positive, and score if its pairs are scored"
            )
        problem = problem_of_value(values[column], column)
        if problem:
            return f"column {column!r} {problem}"
    return None


def _of_one_kind(
    path: Path, first: NumberedPair, others: Iterator[NumberedPair], *, scored: bool
) -> Iterator[NumberedPair]:
    """Yield all rows, and check that all of them have a good score or none has."""
    yield first
    for number, row in others:
        if is_given(row.get(SCORE)) != scored:
            has, had = ("no", "one") if scored else ("a", "none")
            raise UserError(
                f"{path}:{number}: has {has} score, and the first row has {had}; give every row "
                "one, or make two files"
            )
        yield number, row


def _scored(path: Path, pairs: Iterator[NumberedPair]) -> Scored:
    anchors, positives, scores = [], [], []
    for number, row in pairs:
        anchor, positive, score = (row[column] for column in (*TEXTS, SCORE))
        problem = problem_of_value(score, SCORE)
        if problem:
            raise UserError(f"{path}:{number}: column {SCORE!r} {problem}")
        if isinstance(positive, list):
            raise UserError(f"{path}:{number}: one score for a list of positives; give each a row")
        anchors.append(str(anchor))
        positives.append(str(positive))
        scores.append(float(str(score)))
    if len(set(scores)) < 2:
        same = "there is one score" if len(scores) == 1 else f"all {len(scores)} scores are equal"
        raise UserError(
            f"{path}: {same}, so there is no order to compare with; "
            "leave the column out to search for the positives"
        )
    return Scored(anchors, positives, scores)


def _retrieval(path: Path, pairs: Iterator[NumberedPair]) -> Retrieval:
    queries: dict[bytes, str] = {}
    corpus: dict[bytes, str] = {}
    relevant: dict[bytes, dict[bytes, int]] = {}
    for _, row in pairs:
        anchor, positive = str(row["anchor"]), row["positive"]
        query = digest(anchor)
        queries.setdefault(query, anchor)
        for text in map(str, positive if isinstance(positive, list) else [positive]):
            document = digest(text)
            corpus.setdefault(document, text)
            relevant.setdefault(query, {})[document] = 1
    if len(corpus) < 2:
        raise UserError(
            f"{path}: all rows have one positive, so every search would find it; give rows with "
            "others"
        )
    names = {document: f"d{place}" for place, document in enumerate(corpus)}
    return Retrieval(
        {f"q{place}": text for place, text in enumerate(queries.values())},
        {names[document]: ("", text) for document, text in corpus.items()},
        {
            f"q{place}": {names[document]: grade for document, grade in relevant[query].items()}
            for place, query in enumerate(queries)
        },
    )
