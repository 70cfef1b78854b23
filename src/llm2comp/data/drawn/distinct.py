"""Tell texts apart by 16 bytes each, however long they are."""

import hashlib
import unicodedata

DIGEST_BYTES = 16


def digest(*texts: str) -> bytes:
    """Return 16 bytes that differ for different texts.

    The same text in two forms of Unicode has one digest: "é" is one character or an "e" and an
    accent, looks the same, and means the same (Unicode Standard Annex 15, form NFC). Upper and
    lower case differ.

    Args:
        *texts: valid Unicode without NUL.
    """
    joined = "\0".join(unicodedata.normalize("NFC", text) for text in texts)
    return hashlib.blake2b(joined.encode(), digest_size=DIGEST_BYTES).digest()


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
