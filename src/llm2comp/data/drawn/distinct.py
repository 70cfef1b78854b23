"""Tell texts apart by 16 bytes each, however long they are."""

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping

from llm2comp.data.drawn.left_out import LeftOut

DIGEST_BYTES = 16


def digest(*texts: str) -> bytes:
    """Return 16 bytes that differ for different texts.

    The same text in two forms of Unicode has one digest: "é" is one character or an "e" and an
    accent, looks the same, and means the same (Unicode Standard Annex 15, form NFC). White space
    around a text does not count. Upper and lower case differ.

    Args:
        *texts: valid Unicode without NUL.
    """
    joined = "\0".join(unicodedata.normalize("NFC", text).strip() for text in texts)
    return hashlib.blake2b(joined.encode(), digest_size=DIGEST_BYTES).digest()


def number(text: str) -> int:
    """Return the first 8 bytes of a text's digest as a signed number.

    One chance in a million that two texts out of millions have one number does no harm where it is
    used: two rows are then not in one batch, or a negative is left out.
    """
    return int.from_bytes(digest(text)[:8], signed=True)


class Distinct:
    """Says of each text, or tuple of texts, whether it is new."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def is_new(self, *texts: str) -> bool:
        """Return whether the texts have not been seen before, and remember them."""
        key = digest(*texts)
        if key in self._seen:
            return False
        self._seen.add(key)
        return True

    def texts(
        self, rows: Iterable[Mapping[str, str]], source: str, left_out: LeftOut, min_chars: int = 0
    ) -> Iterator[str]:
        """Yield the new texts of rows without white space around them.

        Args:
            rows: rows with the column `text`.
            source: where they are from.
            left_out: counts the texts that are too short or not new.
            min_chars: the fewest characters of a text.
        """
        for row in rows:
            text = row["text"].strip()
            if len(text) < min_chars:
                left_out.count("too_short", source)
            elif self.is_new(text):
                yield text
            else:
                left_out.count("repeated", source)
