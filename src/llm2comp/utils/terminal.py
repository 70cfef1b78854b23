"""The console that tables and progress bars are shown on."""

from typing import NoReturn

from rich.console import Console


class Terminal(Console):
    """A console that raises `BrokenPipeError` if its reader has gone.

    Rich would redirect the stream and exit with status 1, as if the command had failed.
    """

    def on_broken_pipe(self) -> NoReturn:
        """Raise the error that Rich is handling when it calls this."""
        raise
