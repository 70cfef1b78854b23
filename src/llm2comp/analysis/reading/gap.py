"""Which share of the gap from nothing to the full text a memory closes, and how sure that is."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import t

RESAMPLES = 1000
"""Number of bootstrap resamples."""
SEED = 0
CONFIDENCE = 0.95
TOO_SMALL = "too small to tell"
"""Said of a gap whose interval contains 0, in place of a share."""

Floats = npt.NDArray[np.float64]


class Interval(NamedTuple):
    """A value and its 95 % interval.

    Attributes:
        value: of the texts that were measured.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    value: float
    low: float
    high: float


def interval(value: float, resampled: Floats) -> Interval:
    """Return a value and the percentile interval of its bootstrap (Efron and Tibshirani, 1993).

    Args:
        value: of the texts that were measured; it may be infinite.
        resampled: `(RESAMPLES,)`, the value of each resample; NaN if it has none.
    """
    ends = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    # One of the values and not one between two, because they may be infinite.
    low, high = np.nanquantile(resampled, ends, method="nearest")
    return Interval(value, float(low), float(high))


def gap_closed(
    nothing: Sequence[float], memory: Sequence[float], full: Sequence[float]
) -> Interval | None:
    """Return which share of what the full text tells the memory tells.

    `(loss given nothing - loss given memory) / (loss given nothing - loss given full text)`, of the
    means; 1 is as good as the text, and 0 as good as nothing. The interval is that of a bootstrap
    over the items.

    Args:
        nothing: losses of items (texts, or tokens of one text) given nothing.
        memory: losses of the same items given memory.
        full: losses of the same items given the full text.

    Returns:
        The share, or None if the gap is too small to tell (`is_told`).
    """
    if not is_told(nothing, full):
        return None
    means = [float(np.mean(losses)) for losses in (nothing, memory, full)]
    share = (means[0] - means[1]) / (means[0] - means[2])
    return interval(share, resampled_shares(nothing, memory, full))


def is_told(nothing: Sequence[float], full: Sequence[float]) -> bool:
    """Return whether the full text predicts better than nothing by more than chance.

    It does if Student's 95 % interval of the mean difference is above 0, which needs two items.
    """
    gaps = np.subtract(nothing, full)
    if len(gaps) < 2:
        return False
    error = gaps.std(ddof=1) / len(gaps) ** 0.5
    return bool(gaps.mean() > t.ppf((1 + CONFIDENCE) / 2, len(gaps) - 1) * error)


def resampled_shares(
    nothing: Sequence[float], memory: Sequence[float], full: Sequence[float]
) -> Floats:
    """Return the share of the gap that memory closes in resamples of the items.

    The resamples depend on the number of items alone: those of two lengths are of the same texts.

    Returns:
        `(RESAMPLES,)`; NaN where the full text is no better than nothing.
    """
    losses = np.array([nothing, memory, full])
    items = losses.shape[1]
    rows = np.random.default_rng(SEED).integers(items, size=(RESAMPLES, items))
    of_nothing, of_memory, of_full = losses[:, rows].mean(-1)
    gaps = of_nothing - of_full
    shares: Floats = np.divide(
        of_nothing - of_memory, gaps, out=np.full(RESAMPLES, np.nan), where=gaps > 0
    )
    return shares


def in_words(share: Interval | None) -> str:
    """Return a share with its interval, in percent, or that the gap is too small to tell."""
    if share is None:
        return TOO_SMALL
    return f"{share.value:.0%} ({share.low:.0%} to {share.high:.0%})"
