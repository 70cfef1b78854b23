"""The log of a run: `run.jsonl` and, if it is installed, TensorBoard."""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from llm2comp.errors import UserError
from llm2comp.training.distributed import world
from llm2comp.utils.files import atomic_file

BOARD = "tensorboard"
"""Subfolder of a run with the files of TensorBoard."""
SEAL = "sha256"
"""Key of the last event of a stage: the digest of its lines, the last one without this key."""


class RunLog:
    """Appends events to a file, one per line, and sends their numbers to TensorBoard.

    Each line is written at once, so that a killed run loses none. The log of a stage that resumes
    is cut back to its checkpoint, so that no step is logged twice. If several processes train
    together, only the main one writes.

    Args:
        path: the file. The files of TensorBoard are in a folder beside it.
        console: where progress is shown.
    """

    def __init__(self, path: Path, console: Console) -> None:
        self.path = path
        self.console = console
        self._boards: dict[str, Any] = {}
        self._stage = ""
        self._first_step = 0
        self._seconds_before = 0.0
        self._started = 0.0

    def start_stage(self, stage: str, mark: Mapping[str, Any] | None, step: int = 0) -> None:
        """Begin or continue the log of a stage.

        Args:
            stage: its name.
            mark: what `mark` returned when the checkpoint was written from which the stage
                continues; None if it begins, or if an older version wrote the checkpoint.
            step: of the checkpoint; 0 if the stage begins.

        Raises:
            UserError: if the lines that the checkpoint followed have changed since.
        """
        events = read_lines(self.path)
        own = [line for line, event in events if event.get("stage") == stage]
        if mark is not None:
            kept = own[: mark["lines"]]
            if _digest(kept) != mark["sha256"]:
                raise UserError(f"{self.path} is damaged: the lines of {stage} have changed")
        else:
            steps = [event.get("step", 0) for _, event in events if event.get("stage") == stage]
            kept = [line for line, at in zip(own, steps, strict=True) if step and at <= step]
        if len(kept) < len(own):
            others = [line for line, event in events if event.get("stage") != stage]
            with atomic_file(self.path) as partial:
                partial.write_bytes(b"".join([*others, *kept]))
        self._stage, self._first_step = stage, step + 1 if step else 0
        self._seconds_before = mark["seconds"] if mark else 0.0
        self._started = time.monotonic()

    def mark(self) -> dict[str, Any]:
        """Return how far the log of the present stage is, for a checkpoint."""
        lines = self._lines_of(self._stage)
        return {"lines": len(lines), "sha256": _digest(lines), "seconds": self._seconds()}

    def finish_stage(self) -> None:
        """Write that the present stage is done, with its seconds in all sessions, and seal it."""
        event = {"stage": self._stage, "done": True, "seconds": round(self._seconds(), 1)}
        lines = [*self._lines_of(self._stage), _line(event)]
        self.write(**event, **{SEAL: _digest(lines)})

    def ensure_finished(self, stage: str) -> None:
        """Write that a stage is done, if the process was killed after the stage and before that."""
        own = [event for _, event in read_lines(self.path) if event.get("stage") == stage]
        if own and not any(event.get("done") for event in own):
            done = {"stage": stage, "done": True}
            self.write(**done, **{SEAL: _digest([*self._lines_of(stage), _line(done)])})

    def write(self, **event: Any) -> None:
        """Append an event.

        Args:
            **event: what is logged, as JSON. An event with a `step` also needs a `stage`, and its
                numbers go to TensorBoard.
        """
        if not world.is_main():
            return
        end = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("ab") as stream:
                stream.write(_line(event))
        except OSError:  # for example a full disk, after a part of the line
            if self.path.exists():
                os.truncate(self.path, end)
            raise
        if "step" in event and find_spec("tensorboard") is not None:
            self._show(event)

    def write_once(self, **event: Any) -> None:
        """Append an event of a stage's beginning, unless the stage continues and has it already."""
        if not world.is_main():
            return
        if not self.path.exists() or _line(event) not in self._lines_of(event["stage"]):
            self.write(**event)

    def drop_half_line(self) -> None:
        """Remove the beginning of a last line, as a power cut leaves it."""
        if self.path.exists() and (whole := self.path.read_bytes()) and whole[-1:] != b"\n":
            os.truncate(self.path, whole.rfind(b"\n") + 1)

    def check(self) -> None:
        """Check that the lines of finished stages are those that were written.

        The beginning of a last line, as a power cut leaves it, is removed.

        Raises:
            UserError: if a line was changed; the message names the file and the line.
        """
        self.drop_half_line()
        lines: dict[str, list[bytes]] = {}
        for number, (line, event) in enumerate(read_lines(self.path), start=1):
            seal = event.pop(SEAL, None)
            of_stage = lines.setdefault(event.get("stage", ""), [])
            of_stage.append(line if seal is None else _line(event))
            if seal is not None and seal != _digest(of_stage):
                raise UserError(
                    f"{self.path}:{number}: the log of {event.get('stage')} is damaged or was "
                    "edited; restore the file, or remove the folder of the run to start again"
                )

    def events(self, stage: str) -> list[dict[str, Any]]:
        """Return what was logged of a stage, also before it was stopped, as far as it is kept."""
        return [event for _, event in read_lines(self.path) if event.get("stage") == stage]

    def _lines_of(self, stage: str) -> list[bytes]:
        return [line for line, event in read_lines(self.path) if event.get("stage") == stage]

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._started

    def _show(self, event: Mapping[str, Any]) -> None:
        stage = event["stage"]
        if stage not in self._boards:
            from torch.utils.tensorboard import SummaryWriter

            # What an earlier session wrote for the steps that are done again is taken back.
            self._boards[stage] = SummaryWriter(
                str(self.path.parent / BOARD / stage), purge_step=self._first_step
            )
        for name, value in _numbers(event):
            self._boards[stage].add_scalar(f"{stage}/{name}", value, event["step"])
        self._boards[stage].flush()


def _line(event: Mapping[str, Any]) -> bytes:
    text = json.dumps(event, ensure_ascii=False) + "\n"
    return text.encode(errors="surrogatepass")  # a file name that is not UTF-8 has surrogates


def _digest(lines: list[bytes]) -> str:
    return hashlib.sha256(b"".join(lines)).hexdigest()


def read_lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Return each line of a log and its event; none if there is no file.

    Raises:
        UserError: if a line is not JSON.
    """
    if not path.exists():
        return []
    events = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        try:
            event = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            event = None
        if not isinstance(event, dict):
            raise UserError(f"{path}:{number}: not JSON; the run is damaged")
        events.append((line, event))
    return events


def _numbers(event: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of an event by name; a number within a part is called `part_name`."""
    for name, value in event.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}_")
        elif isinstance(value, int | float) and name != "step":
            yield f"{prefix}{name}", float(value)
