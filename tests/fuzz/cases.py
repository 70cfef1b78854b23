"""One case of a fuzz test: a command that runs in this process, and what every command keeps."""

import hashlib
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow.parquet as pq
from hypothesis import HealthCheck, Phase, settings
from typer.testing import CliRunner

from llm2comp.cli.app import LONGEST_LINE, app
from llm2comp.errors import UserError

CASES_VARIABLE = "LLM2COMP_FUZZ_CASES"
CASES = int(os.environ.get(CASES_VARIABLE, "2000"))
"""Number of cases of all fuzz tests together."""

COUNTS: Counter[str] = Counter()
"""Number of cases that have run, by subject."""
SECONDS: Counter[str] = Counter()
"""Processor time that they took, by subject."""

T = TypeVar("T")
_Files = dict[str, str]


def cases(per_2000: int) -> Callable[[Any], Any]:
    """Return the decorator that sets the number of cases of a test.

    Args:
        per_2000: its cases if there are 2,000 in all.
    """
    return settings(
        max_examples=max(1, round(per_2000 * CASES / 2000)),
        # The same cases every time, unless someone asked for more of them.
        derandomize=CASES_VARIABLE not in os.environ,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def case(subject: str) -> Iterator[Path]:
    """Count a case, and make an empty folder the working folder for its time."""
    started = time.process_time()
    try:
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent, "here")
            folder.mkdir()
            with chdir(folder):  # `..` is a folder of the case, too
                yield folder
        COUNTS[subject] += 1  # neither for a failure nor for values that hypothesis gave up
    finally:
        SECONDS[subject] += time.process_time() - started


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    status: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The line of the error."""
        return self.stderr.splitlines()[-1]


def run(
    arguments: Sequence[str], *, writes: Sequence[str] = (), begins: str = "", stdin: bytes = b""
) -> Outcome:
    """Run a command in the working folder, and check what every command keeps.

    It ends with status 0, or with status 2 and one line. It changes and creates nothing but its
    outputs, and it leaves them as they were if it fails. Nothing is left half-written.

    Args:
        arguments: of the command line.
        writes: files and folders that it may write.
        begins: a folder in which it may leave a begun run that the same command continues.
        stdin: what standard input holds.
    """
    before = _snapshot(Path())
    result = CliRunner().invoke(app, list(arguments), input=stdin)
    about = f"llm2comp {' '.join(map(repr, arguments))}\n{result.output[-3000:]}"
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        result.exception.add_note(about)
        raise result.exception  # itself, so that hypothesis tells kinds of failures apart
    changed = _changes(before, _snapshot(Path()))
    allowed = (*writes, begins) if result.exit_code == 0 else (begins,)
    unexpected = [name for name in changed if not _within(name, allowed)]
    assert not unexpected, f"{about}: status {result.exit_code} and changed {unexpected}"
    left = [name for name in changed if _is_unfinished(name)]
    assert not left, f"{about}: left {left}"
    _check_cache(about)
    outcome = Outcome(result.exit_code, result.stdout, result.stderr)
    assert outcome.status in (0, 2), about
    if outcome.status == 2 and not _is_help(outcome):
        lines = [line for line in outcome.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("llm2comp: ")]
        assert errors == lines[-1:], f"{about}: not one line of an error"
        assert len(outcome.error) <= len("llm2comp: ") + LONGEST_LINE, (
            f"{about}: {len(outcome.error)} characters"
        )
    return outcome


@contextmanager
def unchanged(folder: Path, *, except_for: str = "") -> Iterator[None]:
    """Check that a block changes nothing in a folder but its outputs, and leaves them whole."""
    before = _snapshot(folder)
    yield
    changed = _changes(before, _snapshot(folder))
    output = (folder / except_for).as_posix()
    unexpected = [n for n in changed if not _within(n, [output]) or _is_unfinished(n)]
    assert not unexpected, f"changed or left {unexpected}"


def refused_or(call: Callable[[], T]) -> T | None:
    """Return what a call returns, or nothing if it refuses its input in one line."""
    try:
        return call()
    except UserError as error:
        str(error).encode()
        return None


def require_embeddings(file: Path, rows: int | None) -> None:
    """Check that a file of embeddings is whole, has a number of rows if that is known, no NaN."""
    if file.suffix == ".npy":
        embeddings = np.load(file)
    else:
        column = pq.read_table(file)["embedding"]
        embeddings = np.array(column.to_pylist(), dtype=np.float32)
    assert embeddings.ndim == 2
    assert rows in (None, len(embeddings))
    assert np.isfinite(embeddings).all()


def _is_help(outcome: Outcome) -> bool:
    """Return whether a command without arguments showed its help."""
    return "Usage: " in outcome.stderr and "Error" not in outcome.stderr


def _snapshot(folder: Path) -> _Files:
    """Return what is at each path below a folder."""
    files = {}
    for root, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(root, name)
            if path.is_symlink():
                content = f"link to {path.readlink()}"
            elif path.is_file():
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                content = "folder" if path.is_dir() else "device"
            files[path.as_posix()] = content
    return files


def _changes(before: _Files, after: _Files) -> list[str]:
    return [n for n in sorted(before | after) if before.get(n) != after.get(n)]


def _within(name: str, allowed: Sequence[str]) -> bool:
    """Return whether a path is an output, in one, or a folder that has to be made for one."""
    outputs = [os.path.normpath(output) for output in allowed if output]
    return any(
        name == output or name.startswith(f"{output}/") or output.startswith(f"{name}/")
        for output in outputs
    )


def _is_unfinished(name: str) -> bool:
    *_, last = name.split("/")
    return last.endswith((".part", ".tmp"))


def _check_cache(about: str) -> None:
    cache = Path(os.environ["LLM2COMP_CACHE"])
    files = [file.relative_to(cache) for file in cache.rglob("*") if file.is_file()]
    kept = {("precision", ".json"), ("results", ".json")}
    strange = [file for file in files if (file.parts[0], file.suffix) not in kept]
    assert not strange, f"{about}: left {strange} in the cache"
