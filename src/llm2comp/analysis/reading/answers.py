"""Answers from memory: SQuAD's questions, answered from the memory of a passage and from its text.

The frozen language model reads k memory tokens in the place of the passage, as in xRAG (Cheng et
al., 2024, arXiv 2405.13792). The same prompt follows in all cases.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import mean
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from llm2comp.analysis.reading.texts import SHUFFLE_SEED, last_tokens
from llm2comp.data import catalog
from llm2comp.errors import UserError, counted
from llm2comp.evaluation.intervals import interval, resampled
from llm2comp.evaluation.metrics.answers import exact_match, f1
from llm2comp.inference.reading.answering import PROMPT, TOKENS, answers, asked, in_words
from llm2comp.inference.reading.reader import Reader
from llm2comp.model.folder.versions import versions
from llm2comp.utils.tables import MISSING, Cells

DATA = "squad-dev"
GIVEN = {
    "full": "full text",
    "memory": "memory",
    "last": "last k tokens of the text",
    "nothing": "nothing",
    "other": "memory of another passage",
    "shuffled": "memory, its tokens in another order",
    "zeroed": "memory set to zero",
    "found memory": "memory of the passage that is found",
    "found text": "full text of the passage that is found",
}
"""What the language model reads before a question."""
OF_TEXT = ("full", "last", "nothing")
"""What does not depend on the encoder."""


@dataclass(frozen=True)
class Question:
    """A question of SQuAD.

    Attributes:
        id: SQuAD's own.
        question: the question.
        passage: in which the answer is.
        answers: the correct ones, by several people.
    """

    id: str
    question: str
    passage: str
    answers: list[str]


@dataclass(frozen=True)
class Answered:
    """The answers in one case; each list has one entry per question.

    Attributes:
        said: the answers.
        exact_match: 0 or 1.
        f1: 0 to 1.
        losses: of the first correct answer, in nats per token.
        tokens: that the language model reads in the place of the passage.
        seconds: per question, for the answer alone; None if most answers are those of another case.
    """

    said: list[str]
    exact_match: list[float]
    f1: list[float]
    losses: list[float]
    tokens: list[int]
    seconds: float | None


@dataclass(frozen=True)
class Answers:
    """The answers of one encoder's backbone.

    Attributes:
        model: name of the encoder.
        backbone: name of the language model that answers.
        k: memory tokens of a passage.
        seed: of the draw of questions.
        notes: what to know before the numbers are read.
        compress_seconds: per passage, to make its memory.
        found: share of the questions whose passage has the nearest embedding of all passages.
        questions: that were asked.
        given: for each key of `GIVEN`, the answers.
    """

    model: str
    backbone: str
    k: int
    seed: int
    notes: list[str]
    compress_seconds: float
    found: float
    questions: list[Question]
    given: dict[str, Answered]

    def mean(self, given: str, measure: str) -> float:
        """Return the mean over questions of `exact_match`, `f1` or `losses`."""
        return float(mean(getattr(self.given[given], measure)))

    def interval(self, given: str, measure: str, against: str | None = None) -> tuple[float, float]:
        """Return a 95 % interval of a mean, or of its difference to another case.

        It is the percentile interval of a bootstrap over questions, paired for a difference.

        Args:
            given: key of `GIVEN`.
            measure: `exact_match`, `f1` or `losses`.
            against: key of `GIVEN` whose mean is subtracted.
        """
        runs = [
            {"statistic": "mean", "predicted": getattr(self.given[case], measure), "gold": zeros}
            for case in (given, against or given)
            for zeros in [[0.0] * len(self.questions)]
        ]
        one, other = resampled(runs) / 100
        low, high = interval(one if against is None else one - other)
        return low, high

    def lines(self) -> list[str]:
        """Say what the table does not, and the notes."""
        return [
            f"{self.model}: a memory of {counted(self.k, 'token')} takes "
            f"{self.compress_seconds:.2f} s per passage, once; the nearest of "
            f"{counted(len(self.questions), 'passage')} is the right one for {self.found:.0%} "
            "of the questions",
            *self.notes,
        ]

    def as_dict(self) -> dict[str, object]:
        """Return everything, for JSON."""
        summary = {
            given: {
                measure: {
                    "mean": self.mean(given, measure),
                    "interval": self.interval(given, measure),
                    "against nothing": self.interval(given, measure, "nothing"),
                }
                for measure in ("exact_match", "f1", "losses")
            }
            for given in self.given
        }
        setting = {"data": DATA, "prompt": PROMPT, "tokens": TOKENS, "versions": versions()}
        return asdict(self) | setting | {"summary": summary}


def draw_questions(count: int, seed: int) -> list[Question]:
    """Draw questions of SQuAD v1.1 dev, each on another passage.

    Args:
        count: how many.
        seed: the same seed gives the same questions.

    Raises:
        UserError: if there are not so many passages.
    """
    by_passage: dict[str, list[Question]] = {}
    for row in catalog.rows(DATA):
        question = Question(row["id"], row["question"], row["context"], row["answers"].splitlines())
        by_passage.setdefault(question.passage, []).append(question)
    if count > len(by_passage):
        raise UserError(f"{DATA} has {len(by_passage)} passages, and {count} questions are asked")
    generator = random.Random(seed)
    return [
        generator.choice(by_passage[passage])
        for passage in generator.sample(sorted(by_passage), count)
    ]


def answer(
    reader: Reader,
    questions: Sequence[Question],
    seed: int,
    advance: Callable[[], object],
    known: Mapping[str, Answered],
) -> Answers:
    """Answer questions from memory, from text and from nothing.

    Args:
        reader: the encoder and the language model.
        questions: two or more, on different passages.
        seed: with which they were drawn.
        advance: called after each case of `GIVEN`.
        known: answers of the same language model to the same questions, which need no asking.
    """
    tokens, notes = reader.tokens([one.passage for one in questions]), reader.notes
    passages = [ids[: reader.max_tokens] for ids in tokens]
    if passages != tokens:
        notes.append(f"passages are cut to {reader.max_tokens} tokens, as when they are encoded")
    start = perf_counter()
    vectors = reader.compress(passages)
    compress_seconds = (perf_counter() - start) / len(passages)
    memory = reader.as_input(vectors)
    order = torch.randperm(reader.k, generator=torch.Generator().manual_seed(SHUFFLE_SEED))
    contexts: dict[str, Callable[[int], Tensor]] = {
        "full": lambda row: reader.embed(passages[row]),
        "memory": lambda row: memory[row],
        "last": lambda row: reader.embed(last_tokens(passages[row], reader.k)),
        "nothing": lambda _: reader.embed([]),
        "other": lambda row: memory[row - 1],
        "shuffled": lambda row: memory[row][order.to(memory.device)],
        "zeroed": lambda row: torch.zeros_like(memory[row]),
    }
    given = {case: known[case] for case in contexts if case in known}
    for case, context in contexts.items():
        if case not in given:
            given[case] = ask(reader, questions, [context(row) for row in range(len(questions))])
        advance()
    nearest = _nearest(reader, questions, vectors)
    wrong = [row for row, found in enumerate(nearest) if found != row]
    for case, same in (("found memory", "memory"), ("found text", "full")):
        given[case] = replace(given[same], seconds=None)
        if wrong:
            context = contexts[same]
            found = ask(
                reader, [questions[row] for row in wrong], [context(nearest[row]) for row in wrong]
            )
            given[case] = _with(given[case], wrong, found)
        advance()
    return Answers(
        model=reader.name,
        backbone=str(reader.lineage.backbone and reader.lineage.backbone.name),
        k=reader.k,
        seed=seed,
        notes=notes,
        compress_seconds=compress_seconds,
        found=mean(float(found == row) for row, found in enumerate(nearest)),
        questions=list(questions),
        given={case: given[case] for case in GIVEN},
    )


def ask(reader: Reader, questions: Sequence[Question], contexts: Sequence[Tensor]) -> Answered:
    """Ask the language model questions.

    Args:
        reader: holds the model.
        questions: one or more.
        contexts: `(length, hidden)` for each, what it reads in the place of the passage.
    """
    start = perf_counter()
    prompts = asked(reader, [one.question for one in questions])
    prefixes = [
        reader.prefix(context, reader.embed(prompt))
        for context, prompt in zip(contexts, prompts, strict=True)
    ]
    said = [in_words(reader, ids) for ids in answers(reader, prefixes, TOKENS)]
    seconds = (perf_counter() - start) / len(questions)
    targets = reader.tokens([f" {one.answers[0]}" for one in questions])
    states = reader.states(prefixes, targets)
    pairs = list(zip(said, [one.answers for one in questions], strict=True))
    return Answered(
        said=said,
        exact_match=[exact_match(*pair) for pair in pairs],
        f1=[f1(*pair) for pair in pairs],
        losses=[
            float(reader.losses(own, target).mean())
            for own, target in zip(states, targets, strict=True)
        ],
        tokens=[len(context) for context in contexts],
        seconds=seconds,
    )


def _nearest(reader: Reader, questions: Sequence[Question], vectors: Tensor) -> list[int]:
    """Return the passage whose embedding is nearest to that of each question, as a search does."""
    queries = reader.encoder.encode(
        [one.question for one in questions],
        prompt=reader.lineage.prompts.get("query", ""),
        convert_to_tensor=True,
        show_progress_bar=False,
    )
    passages = normalize(vectors.mean(1), dim=-1)
    scores = normalize(queries.float(), dim=-1).to(passages) @ passages.T
    return [int(row) for row in scores.argmax(1)]


def _with(answered: Answered, rows: Sequence[int], others: Answered) -> Answered:
    """Return answers of which some rows are others."""
    lists: dict[str, Any] = {
        name: list(values) for name, values in vars(answered).items() if name != "seconds"
    }
    for name, values in lists.items():
        for row, value in zip(rows, getattr(others, name), strict=True):
            values[row] = value
    return replace(answered, **lists)


def cells(measured: Sequence[Answers]) -> Cells:
    """Return the table: scores in percent, losses in nats per token, with 95 % intervals."""
    rows = [
        [
            "model",
            "given",
            "exact match",
            "F1",
            "F1 over nothing",
            "loss of the answer",
            "loss under nothing",
            "tokens",
            "seconds",
        ]
    ]
    for each in measured:
        for given, answered in each.given.items():
            gain = each.interval(given, "f1", "nothing")
            less = each.interval(given, "losses", "nothing")
            seconds = answered.seconds
            rows.append(
                [
                    each.model,
                    GIVEN[given],
                    _spread(100 * each.mean(given, "exact_match"), each, given, "exact_match"),
                    _spread(100 * each.mean(given, "f1"), each, given, "f1"),
                    MISSING if given == "nothing" else _range(100 * np.array(gain), 1),
                    f"{each.mean(given, 'losses'):.3f}",
                    MISSING if given == "nothing" else _range(-np.array(less[::-1]), 3),
                    f"{mean(answered.tokens):.0f}",
                    MISSING if seconds is None else f"{seconds:.2f}",
                ]
            )
    return rows


def _spread(value: float, each: Answers, given: str, measure: str) -> str:
    low, high = each.interval(given, measure)
    return f"{value:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _range(ends: np.ndarray, digits: int) -> str:
    low, high = ends
    return f"{low:+.{digits}f} to {high:+.{digits}f}"
