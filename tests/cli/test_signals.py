"""A signal ends a command at any moment: one line, and nothing is left behind.

`python tests/cli/test_signals.py ENCODER` sends each signal at 50 random moments and prints counts.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

Result = TypeVar("Result")
SHARED = Path("/dev/shm")
SECONDS = 60.0
"""Time within which nothing may be left."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and /dev/shm")


@dataclass
class Command:
    """`encode` with workers, in a session and with a temporary folder of its own."""

    process: "subprocess.Popen[str]"
    folder: Path
    shared_before: frozenset[str]

    @classmethod
    def start(cls, encoder: Path, texts: Path, folder: Path, workers: int = 2) -> "Command":
        (folder / "tmp").mkdir()
        (folder / "out").mkdir()
        arguments = ["encode", encoder, texts, "--out", folder / "out" / "x.npy"]
        arguments += ["--workers", workers, "--batch-size", "1", "--dtype", "float32"]
        before = shared_memory()
        process = subprocess.Popen(
            [sys.executable, "-m", "llm2comp", *map(str, arguments)],
            stdout=subprocess.DEVNULL,
            stderr=(folder / "errors.txt").open("w"),
            env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "tmp")},
            text=True,
            start_new_session=True,
        )
        return cls(process, folder, before)

    @property
    def encodes(self) -> bool:
        return any((self.folder / "out").iterdir())

    @property
    def imports(self) -> bool:
        """Whether it is among the imports that take seconds: not before, in Python's own start."""
        return "numpy" in safe(Path(f"/proc/{self.process.pid}/maps").read_text, "")

    @property
    def starts_a_worker(self) -> bool:
        return any("spawn_main" in " ".join(safe(one.cmdline, [])) for one in self.alive())

    def alive(self) -> list[psutil.Process]:
        return [one for one in psutil.process_iter() if is_in(one, self.process.pid)]

    def send(self, number: int) -> tuple[int, str, list[str]]:
        """Send a signal; return the status, the standard error, and what is left after a while."""
        # A terminal sends Ctrl-C to all processes; `kill` and the system send to one.
        send = os.killpg if number == signal.SIGINT else os.kill
        send(self.process.pid, number)
        try:
            self.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            return 0, "", [f"still runs after {SECONDS:.0f} s"]
        deadline = time.monotonic() + SECONDS
        while (left := self.left(files=number != signal.SIGKILL)) and time.monotonic() < deadline:
            time.sleep(0.2)
        for process in self.alive():
            safe(process.kill, None)
        return self.process.returncode, (self.folder / "errors.txt").read_text(), left

    def left(self, *, files: bool) -> list[str]:
        left = [str(one) for one in self.alive()]
        new = shared_memory() - self.shared_before
        left += sorted(new - in_use()) if new else []
        if files:
            left += [
                str(path) for name in ("out", "tmp") for path in (self.folder / name).iterdir()
            ]
        return left


def is_in(process: psutil.Process, session: int) -> bool:
    """Return whether a process of a session runs; one that has just ended does not."""
    with suppress(psutil.Error, OSError):
        return os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE
    return False


def safe(call: Callable[[], Result], otherwise: Result) -> Result:
    try:
        return call()
    except (psutil.Error, OSError):
        return otherwise


def shared_memory() -> frozenset[str]:
    """Return the names in shared memory, without joblib's, which is not used here."""
    return frozenset(path.name for path in SHARED.iterdir() if "loky" not in path.name)


def in_use() -> set[str]:
    """Return the names in shared memory that a process has mapped: other programs use it too."""
    maps = (safe(Path(f"/proc/{pid}/maps").read_text, "") for pid in psutil.pids())
    return {
        Path(line.split()[-1]).name
        for text in maps
        for line in text.splitlines()
        if str(SHARED) in line
    }


STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGKILL: -9}


def fault(number: int, status: int, errors: str, left: list[str]) -> str:
    """Return what is wrong with the end of a command; empty if nothing is."""
    if left:
        return f"left: {left}"
    if status != STATUS[number]:
        return f"status {status}: {errors}"
    if number == signal.SIGKILL:
        return ""
    *_, line = errors.splitlines()
    by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
    said = f"llm2comp: stopped{by}; no partial files are left"
    if not line.startswith(said) or any(
        word in errors for word in ("Traceback", "ignored", "leaked")
    ):
        return errors
    return ""


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    file = tmp_path / "texts.txt"
    file.write_text("a line of text\n" * 200_000)
    return file


MOMENTS: dict[str, Callable[[Command], bool]] = {
    "import": lambda command: command.imports,
    "start of a worker": lambda command: command.starts_a_worker,
    "work": lambda command: command.encodes,
}


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGINT, "import"),
        (signal.SIGINT, "start of a worker"),
        (signal.SIGTERM, "work"),
        (signal.SIGKILL, "start of a worker"),
        pytest.param(signal.SIGINT, "work", marks=pytest.mark.exhaustive),
        pytest.param(signal.SIGHUP, "work", marks=pytest.mark.exhaustive),
        pytest.param(signal.SIGKILL, "work", marks=pytest.mark.exhaustive),
    ],
    ids=str,
)
def test_a_signal_leaves_nothing(
    number: int, moment: str, encoder: Path, texts: Path, tmp_path: Path
) -> None:
    command = Command.start(encoder, texts, tmp_path)
    deadline = time.monotonic() + 300
    while (runs := command.process.poll() is None) and time.monotonic() < deadline:
        if came := MOMENTS[moment](command):
            break
        time.sleep(0.02)
    if not (runs and came):
        command.process.kill()
        pytest.fail(f"the moment did not come: {(tmp_path / 'errors.txt').read_text()}")
    assert not fault(number, *command.send(number))


def seconds_until_work(encoder: Path, texts: Path) -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = Command.start(encoder, texts, Path(folder))
        start = time.monotonic()
        while not command.encodes:
            time.sleep(0.05)
        command.send(signal.SIGKILL)
        return time.monotonic() - start


def run(encoder: Path, texts: Path, moments: int, signals: list[int]) -> Counter[str]:
    """Send each signal at random moments, from the start to well into the work."""
    most = 1.3 * seconds_until_work(encoder, texts)
    generator = random.Random(0)
    counts: Counter[str] = Counter()
    for place in range(moments):
        for number in signals:
            with tempfile.TemporaryDirectory() as folder:
                command = Command.start(encoder, texts, Path(folder))
                moment = generator.uniform(0, most)
                time.sleep(moment)
                phase = (
                    "work"
                    if command.encodes
                    else "workers"
                    if command.starts_a_worker
                    else "before"
                )
                wrong = fault(number, *command.send(number))
            name = signal.Signals(number).name
            counts[f"{name} {phase} {'wrong' if wrong else 'right'}"] += 1
            if wrong:
                print(f"{place} {name} after {moment:.2f} s ({phase}): {wrong}", flush=True)  # noqa: T201
    return counts


@pytest.mark.exhaustive
def test_signals_at_random_moments_leave_nothing(encoder: Path, texts: Path) -> None:
    counts = run(encoder, texts, 50, [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
    assert not [name for name in counts if "wrong" in name], counts


if __name__ == "__main__":
    _, folder, count, *numbers = sys.argv
    with tempfile.TemporaryDirectory() as place:
        lines = Path(place) / "texts.txt"
        lines.write_text("a line of text\n" * 200_000)
        chosen = [getattr(signal, name) for name in numbers]
        for name, value in sorted(run(Path(folder), lines, int(count), chosen).items()):
            print(value, name, flush=True)  # noqa: T201
