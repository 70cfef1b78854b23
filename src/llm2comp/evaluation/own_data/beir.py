"""Read a folder in the layout of BEIR: `queries.jsonl`, `corpus.jsonl` and `qrels/SPLIT.tsv`.

Thakur et al., 2021. The columns are `_id` and `text` of a query, `_id`, `title` and `text` of a
document, and `query-id`, `corpus-id` and `score` of a judgement.
"""

from collections.abc import Iterator
from pathlib import Path

from llm2comp.data import files
from llm2comp.data.files import BadRow
from llm2comp.data.sources import problem_of_value
from llm2comp.errors import UserError
from llm2comp.evaluation.own_data.rows import Retrieval

QUERIES, CORPUS, QRELS = "queries.jsonl", "corpus.jsonl", "qrels"
HEADER = ["query-id", "corpus-id", "score"]


def qrels_of(folder: Path) -> Path:
    """Return the only file of judgements in a folder.

    Raises:
        UserError: if there is none or several.
    """
    found = sorted((folder / QRELS).glob("*.tsv"))
    if not found:
        raise UserError(
            f"{folder}: a folder to evaluate on has the layout of BEIR, {QUERIES}, {CORPUS} and "
            f"{QRELS}/NAME.tsv; there is no {QRELS}/*.tsv"
        )
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise UserError(
            f"{folder / QRELS} has {names}; name the file that is meant in place of the folder, "
            f"for example {found[0]}"
        )
    return found[0]


def parts(qrels: Path) -> list[Path]:
    """Return the three files that a file of judgements belongs to, itself last."""
    folder = qrels.parent.parent
    return [folder / QUERIES, folder / CORPUS, qrels]


def read_beir(qrels: Path) -> Retrieval:
    """Read the queries that have judgements, and all documents.

    Args:
        qrels: the file of judgements.

    Raises:
        UserError: if a file is missing or a line is bad; the message names file and line.
    """
    queries_file, corpus_file, _ = parts(qrels)
    queries = {name: text for name, (_, text) in _texts(queries_file, blank=False)}
    corpus = dict(_texts(corpus_file, blank=True))
    if len(corpus) < 2:
        raise UserError(f"{corpus_file}: a search needs two documents or more")
    relevant: dict[str, dict[str, int]] = {}
    for number, query, document, grade in _judgements(qrels):
        if query not in queries:
            raise UserError(f"{qrels}:{number}: there is no query {query!r} in {queries_file.name}")
        if document not in corpus:
            raise UserError(
                f"{qrels}:{number}: there is no document {document!r} in {corpus_file.name}"
            )
        if document in relevant.setdefault(query, {}):
            raise UserError(f"{qrels}:{number}: {query!r} and {document!r} are judged twice")
        relevant[query][document] = grade
    answered = {query: grades for query, grades in relevant.items() if max(grades.values()) > 0}
    if not answered:
        raise UserError(f"{qrels}: no query has a document with a score above 0")
    return Retrieval({query: queries[query] for query in answered}, corpus, answered)


def _texts(file: Path, *, blank: bool) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield the identifier, and title and text, of each line; a title is "" if there is none."""
    seen: set[str] = set()
    for number, row in files.read(file):
        if isinstance(row, BadRow):
            raise UserError(f"{file}:{number}: {row.reason}")
        name, title, text = row.get("_id"), row.get("title") or "", row.get("text")
        if not isinstance(name, str | int) or not str(name):
            raise UserError(f"{file}:{number}: no '_id', which is the name of the text")
        if str(name) in seen:
            raise UserError(f"{file}:{number}: the _id {name!r} is there twice")
        for column, value in (("title", title), ("text", text)):
            problem = problem_of_value(value, column)
            if problem and not (value == "" and (blank or column == "title")):
                raise UserError(f"{file}:{number}: column {column!r} {problem}")
        seen.add(str(name))
        yield str(name), (str(title), str(text))


def _judgements(qrels: Path) -> Iterator[tuple[int, str, str, int]]:
    """Yield the number of each line after the header, its query, its document and its grade."""
    try:
        text = qrels.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{qrels}: there is no such file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{qrels}: is not UTF-8; convert the file first") from error
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    if lines[0].split("\t") != HEADER:
        raise UserError(f"{qrels}:1: the header is not {', '.join(HEADER)} with tabs between")
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split("\t")
        if len(cells) != len(HEADER) or not _is_whole(cells[2]):
            raise UserError(
                f"{qrels}:{number}: {line!r} is not a query, a document and a whole number with "
                "tabs between"
            )
        yield number, cells[0], cells[1], int(cells[2])


def _is_whole(cell: str) -> bool:
    return cell.isascii() and cell.removeprefix("-").isdigit()
