"""The exceptions for mistakes that the user can correct, and how an error becomes one line."""


class UserError(Exception):
    """A mistake in the user's input, with a one-line message that names the remedy.

    The command line prints the message without a traceback and exits with status 2. In Python it
    is an ordinary exception.
    """


class BrokenModelError(UserError):
    """A model that a training which diverged left: weights or outputs that are not finite."""


def one_line(error: object, limit: int | None = 200) -> str:
    """Return the message of an error in one line.

    Args:
        error: an exception, or anything else that `str` takes. Line breaks and repeated spaces
            become single spaces.
        limit: the most characters to return; a longer message ends in "...". `None` cuts nothing.
    """
    text = " ".join(str(error).split())
    return text if limit is None or len(text) <= limit else f"{text[: limit - 3]}..."
