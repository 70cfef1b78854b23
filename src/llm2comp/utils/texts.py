"""Types of text in settings: a name must not be blank, and a prompt may be empty."""

from typing import Annotated

from pydantic import AfterValidator


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is blank")
    return text


def _not_only_spaces(text: str) -> str:
    if text and not text.strip():
        raise ValueError("holds only spaces; use '' for none")
    return text


NotBlank = Annotated[str, AfterValidator(_not_blank)]
"""Text with at least one character that is not a space."""
Prefix = Annotated[str, AfterValidator(_not_only_spaces)]
"""Text that is put before another, or ''."""
