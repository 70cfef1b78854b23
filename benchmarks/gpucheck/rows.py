"""A row of the table for each check, written to a file as soon as it is known."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llm2comp.errors import one_line
from llm2comp.utils.hardware import free_unused_memory

PASS, FAIL, NOT_RUN = "pass", "FAIL", "not run"


@dataclass(frozen=True)
class Row:
    """What is known of a check.

    Attributes:
        part: the part that it belongs to.
        check: what was checked.
        result: `pass`, `FAIL` or `not run`.
        measured: what was found, or why it failed or was not run.
        limit: what had to hold; empty if it was only measured.
        seconds: that it took.
        numbers: what was measured, for programs.
    """

    part: str
    check: str
    result: str
    measured: str
    limit: str = ""
    seconds: float = 0.0
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """What a check found.

    Attributes:
        measured: in words.
        passed: whether it is as it should be.
        limit: what had to hold.
        numbers: what was measured, for programs.
    """

    measured: str
    passed: bool = True
    limit: str = ""
    numbers: dict[str, float] = field(default_factory=dict)


class NotRunError(Exception):
    """A check cannot be run here, which is no fault. The message says why."""


class Recorder:
    """Runs the checks of a part one after another, whatever happens to the one before.

    Args:
        part: its name.
        file: gets a line for each check.
    """

    def __init__(self, part: str, file: Path) -> None:
        self.part = part
        self.file = file

    def check(self, name: str, run: Callable[..., Found], *arguments: Any) -> None:
        """Run a check, and write its row.

        Args:
            name: what is checked.
            run: the check; it may raise anything.
            arguments: of the check.
        """
        start = time.perf_counter()
        try:
            found, result = run(*arguments), None
        except NotRunError as reason:
            found, result = Found(str(reason)), NOT_RUN
        except Exception as error:  # running out of memory is one of them
            found, result = Found(f"{type(error).__name__}: {one_line(error)}"), FAIL
        # Here the error is gone, and with it the tensors that its traceback kept.
        free_unused_memory()
        result = result or (PASS if found.passed else FAIL)
        taken = time.perf_counter() - start
        self._write(Row(self.part, name, result, found.measured, found.limit, taken, found.numbers))

    def _write(self, row: Row) -> None:
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")


def read_rows(file: Path) -> list[Row]:
    """Return the rows that were written to a file; a last line that is cut is left out."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
    return [Row(**json.loads(line)) for line in lines if line.endswith("\n")]
