"""How much a memory holds: the loss given memory over the length of the text, and over k.

Each passage is cut once. What is predicted are its last 32 tokens, the same for each length, and
the texts are the tokens right before them. So the loss given nothing is the same for all lengths,
and the loss given a text of n tokens is the loss given the last n tokens of a longer one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean, stdev

import numpy as np
from torch import Tensor

from llm2comp.analysis.reading import gap
from llm2comp.analysis.reading.gap import Floats, Interval
from llm2comp.analysis.reading.passages import draw_held_out
from llm2comp.analysis.reading.texts import last_tokens
from llm2comp.errors import UserError, counted
from llm2comp.inference.reading.reader import Reader

LENGTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Tokens of the texts, unless others are asked for."""
CONTINUATION = 32
"""Tokens that are predicted after a text."""
HOLDS = 0.5
"""A memory holds a text if it closes at least this share of the gap from nothing to full text."""
CURVES = {
    "nothing": "nothing",
    "last": "last k tokens",
    "memory": "memory",
    "full": "full text",
}
"""What the language model reads before the tokens whose losses are measured."""
GAP = ("nothing", "memory", "full")


@dataclass(frozen=True)
class Point:
    """The losses of one encoder at one length, in nats per token.

    Attributes:
        length: tokens of the text.
        k: memory tokens that are read.
        losses: for each key of `CURVES`, the mean loss of each passage.
    """

    length: int
    k: int
    losses: dict[str, list[float]]

    def loss(self, given: str) -> float:
        """Return the mean over passages."""
        return mean(self.losses[given])

    def error(self, given: str) -> float:
        """Return the standard error over passages; NaN for one passage."""
        rows = self.losses[given]
        return stdev(rows) / len(rows) ** 0.5 if len(rows) > 1 else math.nan

    @property
    def gap_closed(self) -> Interval | None:
        """See `llm2comp.analysis.reading.gap.gap_closed`, over passages."""
        return gap.gap_closed(*(self.losses[given] for given in GAP))


@dataclass(frozen=True)
class Capacity:
    """How much the memory of one encoder holds.

    Attributes:
        model: name of the encoder.
        objective: of stage 1.
        data: where the passages are from.
        seed: of the draw of passages.
        notes: what to know before the numbers are read.
        points: by k, then by length.
    """

    model: str
    objective: str
    data: str
    seed: int
    notes: list[str]
    points: list[Point]

    def of(self, k: int) -> list[Point]:
        """Return the points of one k."""
        return [point for point in self.points if point.k == k]

    @property
    def ks(self) -> list[int]:
        """The numbers of memory tokens that were read."""
        return list(dict.fromkeys(point.k for point in self.points))

    def holds(self, k: int) -> Interval | None:
        """Return the length at which memory stops holding: it closes less than half of the gap.

        It is the first such length of those that were measured, interpolated between it and the one
        before over the logarithm of the length. Lengths at which the gap is too small to tell are
        left out. The interval is that of a bootstrap over passages.

        Args:
            k: number of memory tokens.

        Returns:
            Tokens; 0 if no length is held, and infinity if all are. None if the gap is too small to
            tell at all lengths.
        """
        told = self._told(k)
        if not told:
            return None
        lengths = [point.length for point, _ in told]
        resampled = [
            gap.resampled_shares(*(point.losses[given] for given in GAP)) for point, _ in told
        ]
        ends = [_end(lengths, shares) for shares in np.stack(resampled, axis=1)]
        return gap.interval(_end(lengths, np.array([one.value for _, one in told])), np.array(ends))

    def _told(self, k: int) -> list[tuple[Point, Interval]]:
        """Return the points of one k whose gap can be told, with the share that is closed."""
        return [(point, share) for point in self.of(k) if (share := point.gap_closed)]

    def verdict(self, k: int) -> str:
        """Say in one line where the memory stops holding."""
        end, lengths = self.holds(k), [point.length for point, _ in self._told(k)]
        name = f"{self.model}, {k} memory token{'s' * (k > 1)}"
        if end is None:
            return f"{name}: the gap from nothing to the full text is {gap.TOO_SMALL}"
        first, longest = lengths[0], lengths[-1]
        ends = [_in_tokens(tokens, first, longest) for tokens in (end.low, end.high)]
        sure = f"95% interval: {' to '.join(dict.fromkeys(ends))}"
        if end.value == 0:
            return f"{name}: closes less than half of the gap at {first} tokens already ({sure})"
        if math.isinf(end.value):
            return f"{name}: closes half of the gap or more up to {longest} tokens ({sure})"
        return f"{name}: closes less than half of the gap from {end.value:.0f} tokens on ({sure})"

    def worth(self, point: Point) -> float | None:
        """Return how many last tokens of the text predict as well as its memory.

        It is interpolated over the logarithm of the number of tokens.

        Returns:
            Tokens; None if it is less than the fewest tokens or more than the most that were
            measured, or if the text is said again, as the last tokens are then no measure.
        """
        if "reconstruction" in self.objective:
            return None
        known = {one.length: one.loss("full") for one in self.of(point.k)}
        known |= {point.k: point.loss("last")}
        lengths = sorted(length for length in known if length <= point.length)
        for below, above in pairwise(lengths):
            if known[below] >= point.loss("memory") >= known[above]:
                ends = [known[above], known[below]]
                return float(2 ** np.interp(point.loss("memory"), ends, np.log2([above, below])))
        return None


def _end(lengths: Sequence[int], shares: Floats) -> float:
    """Return the length at which shares of the gap fall below half; NaN if a share is."""
    if np.isnan(shares).any():
        return math.nan
    below = np.flatnonzero(shares < HOLDS)
    if not len(below):
        return math.inf
    end = below[0]
    if end == 0:
        return 0.0
    around = slice(end - 1, end + 1)
    return float(2 ** np.interp(-HOLDS, -shares[around], np.log2(lengths[around])))


def _in_tokens(tokens: float, first: int, longest: int) -> str:
    """Return an end of an interval as text, given the lengths that were measured."""
    if math.isinf(tokens):
        return f"more than {longest}"
    return f"{tokens:.0f}" if tokens else f"less than {first}"


def measure(
    reader: Reader,
    data: str,
    lengths: Sequence[int],
    ks: Sequence[int],
    passages: int,
    seed: int,
    advance: Callable[[], object],
) -> Capacity:
    """Measure the memory of one encoder.

    Args:
        reader: the encoder and the language model.
        data: packaged source, local file or hub data set, with texts.
        lengths: tokens of the texts; those of `LENGTHS` that the encoder reads if it is empty.
        ks: how many of the memory tokens are read, from the first on; all if it is empty.
        passages: how many to draw.
        seed: of the draw.
        advance: called after each passage.

    Raises:
        UserError: if there are too few passages, or a length or a k is more than the encoder has.
    """
    most = min(reader.max_tokens, reader.positions - CONTINUATION - 1)
    lengths = sorted(set(lengths or [length for length in LENGTHS if length <= most]))
    ks = sorted(set(ks or [reader.k]))
    if not lengths or lengths[-1] > most:
        raise UserError(f"{reader.name} can be measured up to {most} tokens; give shorter lengths")
    if max(ks) > reader.k:
        raise UserError(
            f"{reader.name} has {counted(reader.k, 'memory token')}, and k is {max(ks)}"
        )
    drawn, notes = draw_held_out(reader, data, lengths[-1] + CONTINUATION, passages, seed)
    rows = []
    for passage in drawn:
        rows.append(_measure(reader, passage, lengths, ks))
        advance()
    points = [
        Point(
            length,
            k,
            {given: [row[length, k][given] for row in rows] for given in CURVES},
        )
        for k in ks
        for length in lengths
    ]
    objective = str(reader.lineage.stages[0].objective)
    notes = [*reader.notes, *notes]
    if min(ks) < reader.k:
        notes.append(
            f"{reader.name} was trained to be read with all of its {reader.k} memory tokens; with "
            "fewer it may hold less than an encoder that was trained for them"
        )
    return Capacity(reader.name, objective, data, seed, notes, points)


def _measure(
    reader: Reader, passage: list[int], lengths: Sequence[int], ks: Sequence[int]
) -> dict[tuple[int, int], dict[str, float]]:
    """Return the losses of one passage, for each length and k."""
    again = reader.says_again
    text, continuation = passage[:-CONTINUATION], passage[-CONTINUATION:]
    memory = reader.as_input(reader.compress([text[-length:] for length in lengths]))
    cells: dict[tuple[int, int], dict[str, tuple[int, int]]] = {}
    jobs: dict[tuple[str, int, int], tuple[Tensor, list[int]]] = {}
    for row, length in enumerate(lengths):
        some = text[-length:]
        target = some if again else continuation
        for k in ks:
            # What does not depend on the length or on k is computed once.
            of_nothing, of_last = (length if again else 0), (length if again or length < k else 0)
            cells[length, k] = {
                "nothing": (of_nothing, 0),
                "last": (of_last, k),
                "memory": (length, k),
                "full": (length, 0),
            }
            jobs["nothing", of_nothing, 0] = reader.prefix(), target
            jobs["last", of_last, k] = reader.prefix(reader.embed(last_tokens(some, k))), target
            jobs["memory", length, k] = reader.prefix(memory[row, :k]), target
            jobs["full", length, 0] = reader.prefix(reader.embed(some)), target
    prefixes, targets = zip(*jobs.values(), strict=True)
    states = reader.states(prefixes, targets)
    losses = {
        job: float(reader.losses(own, target).mean())
        for job, own, target in zip(jobs, states, targets, strict=True)
    }
    return {
        cell: {given: losses[given, *place] for given, place in places.items()}
        for cell, places in cells.items()
    }
