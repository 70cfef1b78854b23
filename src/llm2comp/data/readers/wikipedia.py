"""BoolQ and a dump of Wikipedia: passages, titles and questions."""

import bz2
import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import mwparserfromhell

from llm2comp.data.readers.lines import Row, elements, json_lines

MIN_PARAGRAPH_CHARS = 300
"""Shorter paragraphs of Wikipedia are left out."""
_NOT_PROSE = re.compile(r"\[\[|\]\]|\{\{|\}\}|<|\|")  # left over from broken mark-up
_NOT_TEXT_LINK = re.compile(r"\s*(file|image|category|[a-z]{2,3}(-[a-z]+)*):", re.IGNORECASE)
_HEADING = re.compile(r"^(={2,6})\s*(.+?)\s*\1\s*$", re.MULTILINE)

SQUAD_DEV_ARTICLES = frozenset(
    {
        "Super Bowl 50",
        "Warsaw",
        "Normans",
        "Nikola Tesla",
        "Computational complexity theory",
        "Teacher",
        "Martin Luther",
        "Southern California",
        "Sky (United Kingdom)",
        "Victoria (Australia)",
        "Huguenot",
        "Steam engine",
        "Oxygen",
        "1973 oil crisis",
        "Apollo program",
        "European Union law",
        "Amazon rainforest",
        "Ctenophora",
        "Fresno, California",
        "Packet switching",
        "Black Death",
        "Geology",
        "Newcastle upon Tyne",
        "Victoria and Albert Museum",
        "American Broadcasting Company",
        "Genghis Khan",
        "Pharmacy",
        "Immune system",
        "Civil disobedience",
        "Construction",
        "Private school",
        "Harvard University",
        "Jacksonville, Florida",
        "Economic inequality",
        "Doctor Who",
        "University of Chicago",
        "Yuan dynasty",
        "Kenya",
        "Intergovernmental Panel on Climate Change",
        "Chloroplast",
        "Prime number",
        "Rhine",
        "Scottish Parliament",
        "Islamism",
        "Imperialism",
        "United Methodist Church",
        "French and Indian War",
        "Force",
    }
)
"""The articles of SQuAD v1.1 dev, which is a test set. The sources that were made for training
leave them out. Older sources keep them, so that the same name gives the same rows."""


def boolq_passages(folder: Path) -> Iterator[Row]:
    """Yield each passage once, without the `Title -- ` that BoolQ puts before it.

    In a pair, the title is context for the question. Here it is removed because it is not part of
    the Wikipedia paragraph.
    """
    seen = set()
    for row in json_lines(folder / "combined.jsonl"):
        passage = row["passage"]
        if passage not in seen:
            seen.add(passage)
            yield {"text": passage.partition(" -- ")[2]}


def boolq_pairs(folder: Path) -> Iterator[Row]:
    """Yield question and passage. The passage keeps its `Title -- `."""
    for row in json_lines(folder / "combined.jsonl"):
        yield {"anchor": row["question"], "positive": row["passage"]}


def boolq_dev(folder: Path) -> Iterator[Row]:
    """Yield question and context of the test split. The context is a passage without its title."""
    for row in json_lines(folder / "test.jsonl"):
        _, passage = _title_and_passage(row)
        yield {"question": row["question"], "context": passage}


def boolq_train_passages(folder: Path) -> Iterator[Row]:
    """Yield each passage once, without the articles of `_boolq_train`."""
    for pair in boolq_titles(folder):
        yield {"text": pair["positive"]}


def boolq_train_pairs(folder: Path) -> Iterator[Row]:
    """Yield question and passage, without the articles of `_boolq_train`."""
    for question, _, passage in _boolq_train(folder):
        yield {"anchor": question, "positive": passage}


def boolq_titles(folder: Path) -> Iterator[Row]:
    """Yield title and passage, each passage once, without the articles of `_boolq_train`."""
    seen = set()
    for _, title, passage in _boolq_train(folder):
        if passage not in seen:
            seen.add(passage)
            yield {"anchor": title, "positive": passage}


def _boolq_train(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Yield question, title and passage of the articles that are in no set for evaluation.

    These sets are the test split, which serves for development here, and SQuAD dev.
    """
    held_out = [_title_and_passage(row) for row in json_lines(folder / "test.jsonl")]
    titles = SQUAD_DEV_ARTICLES.union(title for title, _ in held_out)
    passages = {passage for _, passage in held_out}
    for row in json_lines(folder / "combined.jsonl"):
        title, passage = _title_and_passage(row)
        if title not in titles and passage not in passages:
            yield row["question"], title, passage


def _title_and_passage(row: Row) -> tuple[str, str]:
    title, _, passage = row["passage"].partition(" -- ")
    return title, passage


def enwiki_passages(folder: Path) -> Iterator[Row]:
    """Yield the paragraphs and list items of at least 300 characters from all articles."""
    for _, markup in _articles(folder):
        for paragraph in _paragraphs(markup):
            yield {"text": paragraph}


def enwiki_titles(folder: Path) -> Iterator[Row]:
    """Yield title and paragraph, without the articles of SQuAD dev.

    The title is that of the article and, after a colon, that of the section. Without it, forty
    paragraphs would have the same title.
    """
    for title, markup in _articles(folder):
        if title in SQUAD_DEV_ARTICLES:
            continue
        first, *rest = _HEADING.split(markup)
        for heading, section in [("", first), *zip(rest[1::3], rest[2::3], strict=True)]:
            name = ": ".join(filter(None, [title, _prose(heading).strip()]))
            for paragraph in _paragraphs(section):
                yield {"anchor": name, "positive": paragraph}


def _articles(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield title and mark-up of each article."""
    (dump,) = folder.glob("enwiki-*.bz2")
    with bz2.open(dump) as file:
        for element in elements(file, "page"):
            if element.findtext("{*}ns") == "0" and element.find("{*}redirect") is None:
                text = element.findtext("{*}revision/{*}text") or ""
                yield element.findtext("{*}title") or "", text


def _paragraphs(markup: str) -> Iterator[str]:
    """Yield the paragraphs and list items that are long enough, each in one line."""
    for paragraph in _prose(markup).split("\n"):
        clean = " ".join(paragraph.split())
        if len(clean) >= MIN_PARAGRAPH_CHARS and not _NOT_PROSE.search(clean):
            yield clean


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
