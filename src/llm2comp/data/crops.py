"""Two spans of a text as its two views (Contriever, Izacard et al., 2021, arXiv 2112.09118)."""

import random
import re

SHORTEST_SHARE = 0.1
"""The smallest share of a text's words that a span has, as in Contriever."""
LONGEST_SHARE = 0.5
"""The largest."""
SPAN_WORDS = 8
"""A span has at least as many words, because a few words say little of their text."""
TEXT_WORDS = round(SPAN_WORDS / LONGEST_SHARE)
"""A text with fewer words is too short."""

_WORD = re.compile(r"\S+")


class Crops:
    """Draws two spans of each text independently, and counts the texts that are too short.

    A word is what spaces part. So a text without spaces is too short, however long it is.

    Args:
        seed: the same seed gives the same spans for the same texts in the same order.

    Attributes:
        too_short: the number of texts that were too short.
    """

    def __init__(self, seed: int) -> None:
        self.too_short = 0
        self._random = random.Random(f"{seed}/crops")

    def fits(self, text: str) -> bool:
        """Return whether a text is long enough, and count it if it is not."""
        fits = len(_WORD.findall(text)) >= TEXT_WORDS
        self.too_short += not fits
        return fits

    def two(self, text: str) -> tuple[str, str]:
        """Return two spans of a text that is long enough. They may overlap, and are not the same.

        The number of words of a span is uniform between a tenth and a half of the text's, and at
        least `SPAN_WORDS`. Its place is uniform.
        """
        words = [word.span() for word in _WORD.finditer(text)]
        first = second = self._span(len(words))
        while second == first:
            second = self._span(len(words))
        one, other = (text[words[a][0] : words[b - 1][1]] for a, b in (first, second))
        return one, other

    def _span(self, words: int) -> tuple[int, int]:
        """Return the first word of a span, and the word after its last one."""
        shortest = max(SPAN_WORDS, round(SHORTEST_SHARE * words))
        length = self._random.randint(shortest, int(LONGEST_SHARE * words))
        begin = self._random.randint(0, words - length)
        return begin, begin + length
