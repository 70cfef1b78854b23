"""Exact match and F1 of answers, as SQuAD's own script scores them (`evaluate-v1.1.py`).

Rajpurkar et al., 2016, arXiv 1606.05250. Of several correct answers, the best score counts.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(answer: str) -> list[str]:
    """Return the words of an answer in lower case, without punctuation and articles."""
    return ARTICLES.sub(" ", answer.lower().translate(PUNCTUATION)).split()


def exact_match(said: str, correct: Sequence[str]) -> float:
    """Return 1.0 if what was said is one of the correct answers, else 0.0."""
    return float(any(normalised(said) == normalised(answer) for answer in correct))


def f1(said: str, correct: Sequence[str]) -> float:
    """Return the harmonic mean of precision and recall over words, from 0 to 1."""
    return max(_f1(normalised(said), normalised(answer)) for answer in correct)


def _f1(said: list[str], correct: list[str]) -> float:
    common = sum((Counter(said) & Counter(correct)).values())
    return 2 * common / (len(said) + len(correct)) if common else 0.0
