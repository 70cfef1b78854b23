"""PubMed: abstracts, titles and journals."""

import gzip
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from llm2comp.data.readers.lines import Row, elements, json_lines

PUBMED_FILE = "pubmed20n0014.xml.gz"
PUBMED_TEST_FILE = "pubmed21n1298.xml.gz"
JOURNALS = 20
"""The labelled sets have the titles of this many journals, those with the most titles."""


def pubmed_passages(folder: Path) -> Iterator[Row]:
    """Yield the English abstracts."""
    for pair in pubmed_pairs(folder):
        yield {"text": pair["positive"]}


def pubmed_pairs(folder: Path) -> Iterator[Row]:
    """Yield title and abstract of the English articles that have both.

    In the file that `pubmed_journals` reads, its journals are left out, because that set is for
    evaluation.
    """
    yield from _title_and_abstract(_articles(folder / PUBMED_FILE))
    articles = list(_articles(folder / PUBMED_TEST_FILE))
    test_journals = _commonest_journals(articles)
    yield from _title_and_abstract(row for row in articles if row["journal"] not in test_journals)


def pubmedqa_pairs(folder: Path) -> Iterator[Row]:
    """Yield question and abstract, whose parts are joined without their `Context (n):`."""
    for name in ("pqal", "pqaa"):
        for row in json_lines(folder / name / "test.jsonl"):
            parts = re.split(r"^Context \(\d+\):", row["passage"], flags=re.MULTILINE)
            yield {"anchor": row["question"], "positive": " ".join(" ".join(parts).split())}


def pubmed_journals(folder: Path) -> Iterator[Row]:
    """Yield text (a title) and label (its journal) for the 20 journals with the most titles."""
    return _titles_of_commonest_journals(folder / PUBMED_TEST_FILE)


def pubmed_journals_dev(folder: Path) -> Iterator[Row]:
    """Yield text and label, as `pubmed_journals` does, from the file that is not its own."""
    return _titles_of_commonest_journals(folder / PUBMED_FILE)


def _titles_of_commonest_journals(path: Path) -> Iterator[Row]:
    articles = list(_articles(path))
    journals = _commonest_journals(articles)
    for row in articles:
        if row["title"] and row["journal"] in journals:
            yield {"text": row["title"], "label": row["journal"]}


def _commonest_journals(articles: list[Row]) -> set[str]:
    counts = Counter(row["journal"] for row in articles if row["title"])
    return {journal for journal, _ in counts.most_common(JOURNALS)}


def _title_and_abstract(articles: Iterable[Row]) -> Iterator[Row]:
    for row in articles:
        if row["title"] and row["abstract"]:
            yield {"anchor": row["title"], "positive": row["abstract"]}


def _articles(path: Path) -> Iterator[Row]:
    """Yield journal, title and abstract of the English articles; "" if a part is missing."""
    with gzip.open(path) as file:
        for citation in elements(file, "MedlineCitation"):
            if citation.findtext("Article/Language") == "eng":
                parts = map(_inner_text, citation.iterfind("Article/Abstract/AbstractText"))
                yield {
                    "journal": citation.findtext("Article/Journal/Title") or "",
                    "title": _inner_text(citation.find("Article/ArticleTitle")),
                    "abstract": " ".join(part for part in parts if part),
                }


def _inner_text(element: ET.Element | None) -> str:
    """Return the text of an element and of all elements within it, in one line."""
    return "" if element is None else " ".join("".join(element.itertext()).split())
