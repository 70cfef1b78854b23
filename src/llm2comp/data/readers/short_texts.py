"""Sentences, quiz clues and scored pairs."""

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path

from llm2comp.data.readers.lines import Row, lines

STSB_SPLITS = ("train", "dev", "test")


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
    for line in lines(folder / f"sts-{split}.csv"):
        _, file, _, _, score, first, second, *_ = line.split("\t")
        yield dict(split=split, file=file, score=score, sentence1=first, sentence2=second)
