"""Turn the files of each packaged source into rows: one function and one registry line each."""

import bz2
import contextlib
import csv
import gzip
import html
import io
import json
import re
import xml.etree.ElementTree as ET
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import mwparserfromhell

Row = dict[str, str]
Reader = Callable[[Path], Iterator[Row]]
"""Takes the folder of the files and yields rows of column name to text."""

STSB_SPLITS = ("train", "dev", "test")

MIN_PARAGRAPH_CHARS = 300
"""Shorter paragraphs of Wikipedia are left out."""
_NOT_PROSE = re.compile(r"\[\[|\]\]|\{\{|\}\}|<|\|")  # left over from broken mark-up
_NOT_TEXT_LINK = re.compile(r"\s*(file|image|category|[a-z]{2,3}(-[a-z]+)*):", re.IGNORECASE)

PUBMED_TEST_FILE = "pubmed21n1298.xml.gz"
PUBMED_TEST_JOURNALS = 20
"""`pubmed_journals` has the titles of this many journals, those with the most titles."""


def boolq_passages(folder: Path) -> Iterator[Row]:
    """Yield each passage once, without the `Title -- ` that BoolQ puts before it.

    In a pair, the title is context for the question. Here it is removed because it is not part of
    the Wikipedia paragraph.
    """
    seen = set()
    for row in _json_lines(folder / "combined.jsonl"):
        passage = row["passage"]
        if passage not in seen:
            seen.add(passage)
            yield {"text": passage.partition(" -- ")[2]}


def boolq_pairs(folder: Path) -> Iterator[Row]:
    """Yield question and passage. The passage keeps its `Title -- `."""
    for row in _json_lines(folder / "combined.jsonl"):
        yield {"anchor": row["question"], "positive": row["passage"]}


def enwiki_passages(folder: Path) -> Iterator[Row]:
    """Yield the paragraphs and list items of at least 300 characters from all articles."""
    (dump,) = folder.glob("enwiki-*.bz2")
    with bz2.open(dump) as file:
        for element in _elements(file, "page"):
            text = element.findtext("{*}revision/{*}text") or ""
            if element.findtext("{*}ns") == "0" and element.find("{*}redirect") is None:
                for paragraph in _prose(text).split("\n"):
                    clean = " ".join(paragraph.split())
                    if len(clean) >= MIN_PARAGRAPH_CHARS and not _NOT_PROSE.search(clean):
                        yield {"text": clean}


def _prose(markup: str) -> str:
    """Return the text of an article without mark-up, pictures, references and tables."""
    # The apostrophes of bold and italics are often unbalanced, which would break the tags around
    # them. They are skipped here and removed at the end.
    code = mwparserfromhell.parse(markup, skip_style_tags=True)
    links = code.filter_wikilinks(matches=lambda link: bool(_NOT_TEXT_LINK.match(str(link.title))))
    asides = code.filter_tags(matches=lambda tag: str(tag.tag).lower() in ("ref", "table"))
    for node in links + asides:  # strip_code would leave captions and references in the text
        with contextlib.suppress(ValueError):  # it was removed together with a node around it
            code.remove(node)
    return re.sub("'{2,}", "", str(code.strip_code(normalize=True, collapse=True)))


def news_passages(folder: Path) -> Iterator[Row]:
    """Yield the text of each article that has one."""
    with (
        zipfile.ZipFile(folder / "NewsArticles.zip") as archive,
        archive.open("NewsArticles.csv") as raw,
    ):
        for row in csv.DictReader(io.TextIOWrapper(raw, encoding="utf-8", newline="")):
            if row["text"].strip():
                yield {"text": row["text"]}


def pubmed_passages(folder: Path) -> Iterator[Row]:
    """Yield the English abstracts."""
    for pair in pubmed_pairs(folder):
        yield {"text": pair["positive"]}


def pubmed_pairs(folder: Path) -> Iterator[Row]:
    """Yield title and abstract of the English articles that have both.

    In the file that `pubmed_journals` reads, its journals are left out, because that set is for
    evaluation.
    """
    yield from _title_and_abstract(_articles(folder / "pubmed20n0014.xml.gz"))
    articles = list(_articles(folder / PUBMED_TEST_FILE))
    test_journals = _commonest_journals(articles)
    yield from _title_and_abstract(row for row in articles if row["journal"] not in test_journals)


def pubmed_journals(folder: Path) -> Iterator[Row]:
    """Yield text (a title) and label (its journal) for the 20 journals with the most titles."""
    articles = list(_articles(folder / PUBMED_TEST_FILE))
    test_journals = _commonest_journals(articles)
    for row in articles:
        if row["title"] and row["journal"] in test_journals:
            yield {"text": row["title"], "label": row["journal"]}


def _commonest_journals(articles: list[Row]) -> set[str]:
    counts = Counter(row["journal"] for row in articles if row["title"])
    return {journal for journal, _ in counts.most_common(PUBMED_TEST_JOURNALS)}


def _title_and_abstract(articles: Iterable[Row]) -> Iterator[Row]:
    for row in articles:
        if row["title"] and row["abstract"]:
            yield {"anchor": row["title"], "positive": row["abstract"]}


def _articles(path: Path) -> Iterator[Row]:
    """Yield journal, title and abstract of the English articles; "" if a part is missing."""
    with gzip.open(path) as file:
        for citation in _elements(file, "MedlineCitation"):
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


def _elements(file: io.BufferedIOBase, tag: str) -> Iterator[ET.Element]:
    """Yield the elements of one tag in an XML stream, and free each one afterwards."""
    events = ET.iterparse(file, events=("start", "end"))
    _, root = next(events)
    for event, element in events:
        if event == "end" and element.tag.rpartition("}")[2] == tag:
            yield element
            root.clear()


def nlp_corpus_sentences(folder: Path) -> Iterator[Row]:
    """Yield the sentences in the order of the documents."""
    for path in sorted(folder.glob("doc-*.json"), key=lambda path: int(path.stem[4:])):
        for sentence in json.loads(path.read_text(encoding="utf-8")):
            if sentence.strip():
                yield {"text": sentence}


def jeopardy_pairs(folder: Path) -> Iterator[Row]:
    """Yield clue and answer. Links are replaced by their text."""
    for row in json.loads((folder / "jeopardy_10k.json").read_text(encoding="utf-8")):
        clue = html.unescape(re.sub(r"<[^>]+>", "", row["Question"])).strip()
        answer = row["Answer"].replace("\\'", "'").strip()
        if clue and answer:
            yield {"anchor": clue, "positive": answer}


def stsb_train(folder: Path) -> Iterator[Row]:
    """Yield the pairs of the train split with their scores, 0 (unrelated) to 5 (equivalent)."""
    for row in _stsb_split(folder, "train"):
        yield dict(anchor=row["sentence1"], positive=row["sentence2"], score=row["score"])


def stsb(folder: Path) -> Iterator[Row]:
    """Yield split, file (the part of a yearly task), score (0 to 5), sentence1 and sentence2."""
    for split in STSB_SPLITS:
        yield from _stsb_split(folder, split)


def _stsb_split(folder: Path, split: str) -> Iterator[Row]:
    for line in _lines(folder / f"sts-{split}.csv"):
        _, file, _, _, score, first, second, *_ = line.split("\t")
        yield dict(split=split, file=file, score=score, sentence1=first, sentence2=second)


def squad_dev(folder: Path) -> Iterator[Row]:
    """Yield id, question and context, one row per question. Contexts repeat."""
    data = json.loads((folder / "squaddev_v1.1.json").read_text(encoding="utf-8"))["data"]
    for article in data:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                yield dict(id=qa["id"], question=qa["question"], context=paragraph["context"])


def newsgroups(folder: Path) -> Iterator[Row]:
    """Yield text and label."""
    yield from _orange_rows(folder / "20newsgroups-test.tab")


def r8(folder: Path) -> Iterator[Row]:
    """Yield split, text and label."""
    for split in ("train", "test"):
        for row in _orange_rows(folder / f"reuters-r8-{split}.tab"):
            yield {"split": split} | row


def _orange_rows(path: Path) -> Iterator[Row]:
    for line in list(_lines(path))[
        3:
    ]:  # three lines with the names, types and roles of the columns
        label, _, text = line.partition("\t")
        yield {"text": text, "label": label}


def trec(folder: Path) -> Iterator[Row]:
    """Yield each question once, with its coarse label."""
    seen = set()
    for line in _lines(folder / "question_labels.txt", encoding="latin-1"):
        label, _, question = line.partition(" ")
        question = question.strip()
        if question not in seen:
            seen.add(question)
            yield {"text": question, "label": label.partition(":")[0]}


def privacy_policy(folder: Path) -> Iterator[Row]:
    """Yield question, context (a clause) and label ("True" if the clause answers the question)."""
    for row in _json_lines(folder / "test.jsonl"):
        yield dict(question=row["question"], context=row["context"], label=row["answer"])


def _lines(path: Path, encoding: str = "utf-8") -> Iterator[str]:
    with path.open(encoding=encoding, newline="\n") as file:  # do not split at U+2028
        for line in file:
            if line.strip():
                yield line.rstrip("\r\n")


def _json_lines(path: Path) -> Iterator[Row]:
    return map(json.loads, _lines(path))


READERS: dict[str, Reader] = {
    "boolq-passages": boolq_passages,
    "enwiki-passages": enwiki_passages,
    "news-passages": news_passages,
    "pubmed-passages": pubmed_passages,
    "nlp-corpus-sentences": nlp_corpus_sentences,
    "boolq-pairs": boolq_pairs,
    "pubmed-pairs": pubmed_pairs,
    "jeopardy-pairs": jeopardy_pairs,
    "stsb-train": stsb_train,
    "stsb": stsb,
    "squad-dev": squad_dev,
    "20newsgroups": newsgroups,
    "pubmed-journals": pubmed_journals,
    "r8": r8,
    "trec": trec,
    "privacy-policy": privacy_policy,
}
"""The reader of each packaged source that has rows."""
