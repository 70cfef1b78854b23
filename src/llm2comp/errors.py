"""The exceptions for mistakes that the user can correct, and how messages say things."""

from collections.abc import Iterable


class UserError(Exception):
    """A mistake in the user's input, with a one-line message that names the remedy.

    The command line prints the message without a traceback and exits with status 2. In Python it
    is an ordinary exception.
    """


class BrokenModelError(UserError):
    """A model that a training which diverged left: weights or outputs that are not finite."""


class NoScoreError(UserError):
    """An encoder has no score on a task, as one whose embeddings are all alike."""


def one_line(error: object, limit: int | None = 200) -> str:
    """Return the message of an error in one line.

    Args:
        error: an exception, or anything else that `str` takes. Line breaks and repeated spaces
            become single spaces.
        limit: the most characters to return; a longer message ends in "...". `None` cuts nothing.
    """
    text = " ".join(str(error).split())
    return text if limit is None or len(text) <= limit else f"{text[: limit - 3]}..."


def counted(number: int, one: str, many: str = "") -> str:
    """Return how many things there are, as a message says it: `1 text`, `1,024 texts`.

    Args:
        number: of the things.
        one: the word for one of them, with what else changes with the number (`text is`).
        many: the same for several; by default `one` with an s.
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def listed(names: Iterable[object]) -> str:
    """Return the names of a file's columns as a message lists them: `text, label`.

    A byte that is not UTF-8 is escaped, so that every log and file can hold the message.
    """
    return ", ".join(map(str, names)).encode(errors="backslashreplace").decode()
