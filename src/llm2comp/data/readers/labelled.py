"""Labelled sets, which are for evaluation only."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from llm2comp.data.readers.lines import Row, json_lines, lines


def squad_dev(folder: Path) -> Iterator[Row]:
    """Yield id, question, context and answers (one per line), one row per question.

    Contexts repeat. Answers of several people do not, if they are the same.
    """
    data = json.loads((folder / "squaddev_v1.1.json").read_text(encoding="utf-8"))["data"]
    for article in data:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                answers = dict.fromkeys(" ".join(one["text"].split()) for one in qa["answers"])
                yield dict(
                    id=qa["id"],
                    question=qa["question"],
                    context=paragraph["context"],
                    answers="\n".join(answers),
                )


def newsgroups(folder: Path) -> Iterator[Row]:
    """Yield text and label."""
    yield from _orange_rows(folder / "20newsgroups-test.tab")


def r8(folder: Path) -> Iterator[Row]:
    """Yield split, text and label."""
    for split in ("train", "test"):
        for row in _orange_rows(folder / f"reuters-r8-{split}.tab"):
            yield {"split": split} | row


def _orange_rows(path: Path) -> Iterator[Row]:
    for line in islice(lines(path), 3, None):  # after names, types and roles of the columns
        label, _, text = line.partition("\t")
        yield {"text": text, "label": label}


def trec(folder: Path) -> Iterator[Row]:
    """Yield each question once, with its coarse label."""
    seen = set()
    for line in lines(folder / "question_labels.txt", encoding="latin-1"):
        label, _, question = line.partition(" ")
        question = question.strip()
        if question not in seen:
            seen.add(question)
            yield {"text": question, "label": label.partition(":")[0]}


def privacy_policy(folder: Path) -> Iterator[Row]:
    """Yield question, context (a clause) and label ("True" if the clause answers the question)."""
    for row in json_lines(folder / "test.jsonl"):
        yield dict(question=row["question"], context=row["context"], label=row["answer"])
