"""The log of a run: `run.jsonl` and, if it is installed, TensorBoard."""

import json
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

BOARD = "tensorboard"
"""Subfolder of a run with the files of TensorBoard."""


class RunLog:
    """Appends events to a file, one per line, and sends their numbers to TensorBoard.

    Each line is written at once, so that a killed run loses none.

    Args:
        path: the file. The files of TensorBoard are in a folder beside it.
        console: where progress is shown.
    """

    def __init__(self, path: Path, console: Console) -> None:
        self.path = path
        self.console = console
        self._board: Any = None

    def write(self, **event: Any) -> None:
        """Append an event.

        Args:
            **event: what is logged, as JSON. An event with a `step` also needs a `stage`, and its
                numbers go to TensorBoard.
        """
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(event, ensure_ascii=False) + "\n")
        if "step" in event and find_spec("tensorboard") is not None:
            self._show(event)

    def _show(self, event: Mapping[str, Any]) -> None:
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.path.parent / BOARD))
        for name, value in _numbers(event):
            self._board.add_scalar(f"{event['stage']}/{name}", value, event["step"])
        self._board.flush()


def _numbers(event: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of an event by name; a number within a part is called `part_name`."""
    for name, value in event.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}_")
        elif isinstance(value, int | float) and name != "step":
            yield f"{prefix}{name}", float(value)
