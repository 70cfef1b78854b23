"""The curves of how much a memory holds, over the length of the text and over k."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llm2comp.analysis.figures import Points
from llm2comp.analysis.reading.capacity import CURVES, HOLDS, Capacity, Point

LENGTHS_SHOWN = 4
"""Curves over k are drawn for at most this many lengths."""
ONE_EACH = "one encoder for each k"

Panels = dict[str, dict[str, Points]]
"""Points by name of the line, by title of the panel."""


class Curves(NamedTuple):
    """Curves of one kind.

    Attributes:
        panels: points by name of the line, by title of the panel.
        x: label of the x axis.
        y: label of the y axis.
        level: a y below which a memory does not hold; None if there is none.
    """

    panels: Panels
    x: str
    y: str
    level: float | None


def all_of(measured: Sequence[Capacity]) -> dict[str, Curves]:
    """Return all curves that can be drawn, by name of the figure."""
    length, share = "tokens of the text", "share of the gap that is closed"
    drawn = {
        "capacity": Curves(losses(measured), length, "loss, nats per token", None),
        "capacity-over-length": Curves(shares_over_length(measured), length, share, HOLDS),
        "capacity-over-k": Curves(shares_over_k(measured), "memory tokens", share, HOLDS),
    }
    return {name: curves for name, curves in drawn.items() if curves.panels}


def losses(measured: Sequence[Capacity]) -> Panels:
    """Return the losses over the length with standard errors, one panel per encoder and k."""
    return {
        f"{each.model}\nk = {k}": {
            label: [(p.length, p.loss(given), p.error(given)) for p in each.of(k)]
            for given, label in CURVES.items()
        }
        for each in measured
        for k in each.ks
    }


def shares_over_length(measured: Sequence[Capacity]) -> Panels:
    """Return the share of the gap that is closed over the length, one panel per encoder.

    A point has the 95 % interval. Lengths at which the gap is too small to tell have none.
    """
    return _drawn(
        {
            each.model: {f"k = {k}": _shares([(p.length, p) for p in each.of(k)]) for k in each.ks}
            for each in measured
        }
    )


def shares_over_k(measured: Sequence[Capacity]) -> Panels:
    """Return the share of the gap that is closed over k, one line for each of a few lengths.

    An encoder that was read with several k has a panel of its own. Those that were read with one k,
    a different one each, share a panel.
    """
    several = {each.model: each.points for each in measured if len(each.ks) > 1}
    single = [each for each in measured if len(each.ks) == 1]
    if len({each.ks[0] for each in single}) == len(single) > 1:
        several[ONE_EACH] = [point for each in single for point in each.points]
    return _drawn({title: _over_k(points) for title, points in several.items()})


def _over_k(points: Sequence[Point]) -> dict[str, Points]:
    lengths = sorted({point.length for point in points})
    shown = np.linspace(0, len(lengths) - 1, min(LENGTHS_SHOWN, len(lengths))).round().astype(int)
    of_k = sorted(points, key=lambda point: point.k)
    return {
        f"{length} tokens": _shares([(p.k, p) for p in of_k if p.length == length])
        for length in (lengths[place] for place in shown)
    }


def _shares(points: Sequence[tuple[int, Point]]) -> Points:
    told = [(x, share) for x, point in points if (share := point.gap_closed)]
    return [
        (x, share.value, (share.value - share.low, share.high - share.value)) for x, share in told
    ]


def _drawn(panels: Panels) -> Panels:
    """Return the panels that have a line, without lines that have no point."""
    kept = {
        title: {name: line for name, line in lines.items() if line}
        for title, lines in panels.items()
    }
    return {title: lines for title, lines in kept.items() if lines}
