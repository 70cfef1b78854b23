"""What is wrong with a value of a row."""

import math

from llm2comp.data import files


def problem_of_text(value: object) -> str | None:
    """Return what is wrong with a value that is to be a text, or None if it is good."""
    if not isinstance(value, str):
        return f"holds {type(value).__name__}, not a string"
    if not value.strip():
        return "is empty"
    if not _is_unicode(value):
        return "is not valid Unicode; save the file as UTF-8"
    return "holds a NUL character" if files.NUL in value else None


def is_number(value: object) -> bool:
    """Return whether a value is a finite number, or the text of one."""
    try:
        return not isinstance(value, bool) and math.isfinite(float(str(value)))
    except ValueError:
        return False


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
