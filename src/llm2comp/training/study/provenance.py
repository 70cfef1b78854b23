"""Where the results of a study come from: the command, the code, the machine and the time."""

import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import torch

from llm2comp.errors import counted
from llm2comp.utils.hardware import processor_name
from llm2comp.version import __version__

CHECKOUT = Path(__file__).parents[4]
"""The root folder of a checkout, if the package runs from one."""


def now() -> datetime:
    """Return the time in UTC, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


@dataclass
class Session:
    """One call that trained or scored something for a study.

    Attributes:
        command: of the process.
        version: of the package.
        commit: of the checkout that the package runs from, with `+` if a file of the package
            differs from it; empty if it runs from none.
        processor: name of the processor and, if there is one, of the GPU.
        cores: physical cores.
        threads: that torch used.
        start: when the call began.
        end: when results were last written.
        names: trials and baselines that it worked on.
    """

    command: str
    version: str
    commit: str
    processor: str
    cores: int
    threads: int
    start: datetime
    end: datetime
    names: list[str] = field(default_factory=list)

    @classmethod
    def begin(cls) -> "Session":
        """Return a session that begins now."""
        program = Path(sys.argv[0])
        name = "python -m llm2comp" if program.name == "__main__.py" else program.name
        command = " ".join([name, shlex.join(sys.argv[1:])])
        cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
        start = now()
        threads = torch.get_num_threads()
        return cls(command, __version__, commit(), processor_name(), cores, threads, start, start)


def commit(checkout: Path = CHECKOUT) -> str:
    """Return the commit of a checkout, with `+` if its package has changed; empty if it is none."""
    if not (checkout / ".git").exists():
        return ""
    try:
        head, changed = (
            subprocess.run(
                ["git", "-C", str(checkout), *arguments], capture_output=True, text=True, check=True
            ).stdout.strip()
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", "src"])
        )
    except (OSError, subprocess.CalledProcessError):  # no git, or a folder of another user
        return ""
    return head + ("+" if changed else "")


def describe(
    sessions: Sequence[Session], seeds: Iterable[int], precisions: Iterable[str], names: set[str]
) -> list[str]:
    """Return lines on where results come from.

    Args:
        sessions: that made them, at least one.
        seeds: of the trials.
        precisions: that the trials computed in.
        names: of all trials and baselines that have results.
    """
    code = [f"llm2comp {s.version}" + f", commit {s.commit}" * bool(s.commit) for s in sessions]
    machines = [f"{s.processor}, {s.cores} cores, {s.threads} torch threads" for s in sessions]
    hours = sum((s.end - s.start for s in sessions), timedelta()) / timedelta(hours=1)
    start, end = min(s.start for s in sessions), max(s.end for s in sessions)
    lines = [
        f"Command: {_distinct(f'`{s.command}`' for s in sessions)}",
        f"Seeds: {', '.join(map(str, sorted(set(seeds))))}",
        f"Code: {_distinct(code)}",
        f"Machine: {_distinct(machines)}; {_distinct(sorted(filter(None, precisions)))}",
        f"Time: {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, {hours:.1f} hours of training "
        f"and scoring in {counted(len(sessions), 'call')}",
    ]
    if before := names - {name for s in sessions for name in s.names}:
        lines.append(
            f"Not covered by these lines, because an earlier version ran them: "
            f"{', '.join(sorted(before))}"
        )
    return lines


def _distinct(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(values))
