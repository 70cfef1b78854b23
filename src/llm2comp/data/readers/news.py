"""News articles of 2016 and 2017."""

import csv
import io
import zipfile
from collections import Counter
from collections.abc import Iterator
from datetime import date
from pathlib import Path

from llm2comp.data.readers.lines import Row

DEVELOPMENT_FROM = date(2017, 3, 27)
"""The titles of articles of this day and later are for development, and not for training."""


def news_passages(folder: Path) -> Iterator[Row]:
    """Yield the text of each article that has one."""
    for article in _articles(folder):
        yield {"text": article["text"]}


def news_titles(folder: Path) -> Iterator[Row]:
    """Yield title and text of the articles before those of `news_dev`."""
    for article in _titled(folder):
        if _day(article) < DEVELOPMENT_FROM:
            yield {"anchor": article["title"], "positive": article["text"]}


def news_dev(folder: Path) -> Iterator[Row]:
    """Yield question (a title) and context (a text) of the last four days of the file."""
    for article in _titled(folder):
        if _day(article) >= DEVELOPMENT_FROM:
            yield {"question": article["title"], "context": article["text"]}


def _titled(folder: Path) -> Iterator[Row]:
    """Yield the articles whose title no other has; the others are columns like "In brief"."""
    articles = list(_articles(folder))
    titles = Counter(article["title"].strip() for article in articles)
    for article in articles:
        title = article["title"].strip()
        if title and titles[title] == 1:
            yield article | {"title": title}


def _day(article: Row) -> date:
    year, month, day = article["publish_date"].split()[0].split("/")
    return date(int(year), int(month), int(day))


def _articles(folder: Path) -> Iterator[Row]:
    """Yield the articles that have a text."""
    with (
        zipfile.ZipFile(folder / "NewsArticles.zip") as archive,
        archive.open("NewsArticles.csv") as raw,
    ):
        for row in csv.DictReader(io.TextIOWrapper(raw, encoding="utf-8", newline="")):
            if row["text"].strip():
                yield row
