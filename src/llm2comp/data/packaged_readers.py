"""How the files of each packaged source become rows: a small function and a registry line each."""

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

STSB_SPLITS = ("train", "dev", "test")
MIN_PARAGRAPH_CHARS = 300
PUBMED_TEST_FILE = "pubmed21n1298.xml.gz"
PUBMED_TEST_JOURNALS = 20


def boolq_passages(folder: Path) -> Iterator[Row]:
    """Yield each passage once, without the title that BoolQ puts before it as ``Title -- ``.

    In a pair the title is context for the question; as text to compress it is
    no part of the Wikipedia paragraph.
    """
    seen = set()
    for row in _json_lines(folder / "combined.jsonl"):
        passage = row["passage"]
        if passage not in seen:
            seen.add(passage)
            yield {"text": passage.partition(" -- ")[2]}


def boolq_pairs(folder: Path) -> Iterator[Row]:
    """Yield question and passage, the passage with its ``Title -- ``."""
    for row in _json_lines(folder / "combined.jsonl"):
        yield {"anchor": row["question"], "positive": row["passage"]}


def enwiki_passages(folder: Path) -> Iterator[Row]:
    """Yield the paragraphs (and list items) of articles that have at least 300 characters."""
    (dump,) = folder.glob("enwiki-*.bz2")
    with bz2.open(dump) as file:
        for element in _elements(file, "page"):
            text = element.findtext("{*}revision/{*}text") or ""
            if element.findtext("{*}ns") == "0" and element.find("{*}redirect") is None:
                for paragraph in _prose(text).split("\n"):
                    clean = " ".join(paragraph.split())
                    if len(clean) >= MIN_PARAGRAPH_CHARS and not _NOT_PROSE.search(clean):
                        yield {"text": clean}


_NOT_PROSE = re.compile(r"\[\[|\]\]|\{\{|\}\}|<|\|")  # mark-up that was broken
_NOT_TEXT = re.compile(r"\s*(file|image|category|[a-z]{2,3}(-[a-z]+)*):", re.IGNORECASE)


def _prose(markup: str) -> str:
    # Apostrophes for bold and italics that are out of step would spoil the tags around them.
    code = mwparserfromhell.parse(markup, skip_style_tags=True)
    pictures = code.filter_wikilinks(matches=lambda link: bool(_NOT_TEXT.match(str(link.title))))
    asides = code.filter_tags(matches=lambda tag: str(tag.tag).lower() in ("ref", "table"))
    for node in pictures + asides:  # strip_code would leave their captions and sources in the text
        with contextlib.suppress(ValueError):  # it may have gone with the node around it
            code.remove(node)
    return re.sub("'{2,}", "", str(code.strip_code(normalize=True, collapse=True)))


def news_passages(folder: Path) -> Iterator[Row]:
    """Yield the texts of the articles that have one."""
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

    Articles of the journals that ``pubmed_journals`` evaluates on are left out.
    """
    yield from _title_and_abstract(_articles(folder / "pubmed20n0014.xml.gz"))
    articles = list(_articles(folder / PUBMED_TEST_FILE))
    test = _commonest_journals(articles)
    yield from _title_and_abstract(row for row in articles if row["journal"] not in test)


def pubmed_journals(folder: Path) -> Iterator[Row]:
    """Yield text (a title) and label (its journal), for the 20 commonest journals of one file."""
    articles = list(_articles(folder / PUBMED_TEST_FILE))
    test = _commonest_journals(articles)
    for row in articles:
        if row["title"] and row["journal"] in test:
            yield {"text": row["title"], "label": row["journal"]}


def _commonest_journals(articles: list[Row]) -> set[str]:
    counts = Counter(row["journal"] for row in articles if row["title"])
    return {journal for journal, _ in counts.most_common(PUBMED_TEST_JOURNALS)}


def _title_and_abstract(articles: Iterable[Row]) -> Iterator[Row]:
    for row in articles:
        if row["title"] and row["abstract"]:
            yield {"anchor": row["title"], "positive": row["abstract"]}


def _articles(path: Path) -> Iterator[Row]:
    """Yield journal, title and abstract ("" where missing) of the English articles."""
    with gzip.open(path) as file:
        for citation in _elements(file, "MedlineCitation"):
            if citation.findtext("Article/Language") == "eng":
                parts = map(_flat, citation.iterfind("Article/Abstract/AbstractText"))
                yield {
                    "journal": citation.findtext("Article/Journal/Title") or "",
                    "title": _flat(citation.find("Article/ArticleTitle")),
                    "abstract": " ".join(part for part in parts if part),
                }


def _flat(element: ET.Element | None) -> str:
    return "" if element is None else " ".join("".join(element.itertext()).split())


def _elements(file: io.BufferedIOBase, tag: str) -> Iterator[ET.Element]:
    """Yield each ``tag`` of an XML stream, forgetting those that have passed."""
    events = ET.iterparse(file, events=("start", "end"))
    _, root = next(events)
    for event, element in events:
        if event == "end" and element.tag.rpartition("}")[2] == tag:
            yield element
            root.clear()


def nlp_corpus_sentences(folder: Path) -> Iterator[Row]:
    """Yield the sentences, document by document."""
    for path in sorted(folder.glob("doc-*.json"), key=lambda path: int(path.stem[4:])):
        for sentence in json.loads(path.read_text(encoding="utf-8")):
            if sentence.strip():
                yield {"text": sentence}


def jeopardy_pairs(folder: Path) -> Iterator[Row]:
    """Yield clue and answer; links to pictures are reduced to their words."""
    for row in json.loads((folder / "jeopardy_10k.json").read_text(encoding="utf-8")):
        clue = html.unescape(re.sub(r"<[^>]+>", "", row["Question"])).strip()
        answer = row["Answer"].replace("\\'", "'").strip()
        if clue and answer:
            yield {"anchor": clue, "positive": answer}


def stsb_train(folder: Path) -> Iterator[Row]:
    """Yield the train pairs with their scores, 0 (unrelated) to 5 (equivalent)."""
    for row in _stsb_split(folder, "train"):
        yield dict(anchor=row["sentence1"], positive=row["sentence2"], score=row["score"])


def stsb(folder: Path) -> Iterator[Row]:
    """Yield split, file (of the yearly task), score (0 to 5), sentence1 and sentence2."""
    for split in STSB_SPLITS:
        yield from _stsb_split(folder, split)


def _stsb_split(folder: Path, split: str) -> Iterator[Row]:
    for line in _lines(folder / f"sts-{split}.csv"):
        _, file, _, _, score, first, second, *_ = line.split("\t")
        yield dict(split=split, file=file, score=score, sentence1=first, sentence2=second)


def squad_dev(folder: Path) -> Iterator[Row]:
    """Yield id, question and context; contexts repeat, one row a question."""
    data = json.loads((folder / "squaddev_v1.1.json").read_text(encoding="utf-8"))["data"]
    for article in data:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                yield dict(id=qa["id"], question=qa["question"], context=paragraph["context"])


def newsgroups(folder: Path) -> Iterator[Row]:
    """Yield text and label."""
    yield from _orange(folder / "20newsgroups-test.tab")


def r8(folder: Path) -> Iterator[Row]:
    """Yield split, text and label."""
    for split in ("train", "test"):
        for row in _orange(folder / f"reuters-r8-{split}.tab"):
            yield {"split": split} | row


def _orange(path: Path) -> Iterator[Row]:
    for line in list(_lines(path))[3:]:  # names, types and roles of the columns
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
    """Yield question, context (a clause) and label ("True" where the clause answers it)."""
    for row in _json_lines(folder / "test.jsonl"):
        yield dict(question=row["question"], context=row["context"], label=row["answer"])


def _lines(path: Path, encoding: str = "utf-8") -> Iterator[str]:
    with path.open(encoding=encoding, newline="\n") as file:  # U+2028 and the like stay in a line
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
