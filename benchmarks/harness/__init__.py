"""What every benchmark shares: runs in turn, peak memory, a table with ratios, JSON."""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from llm2comp.cli.shared import quiet
from llm2comp.utils.files import atomic_file
from llm2comp.utils.hardware import compute_dtype
from llm2comp.utils.tables import show_table
from llm2comp.utils.terminal import Terminal

quiet()
RESULTS = Path(__file__).parents[1] / "results"


def seconds(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Return how long a call takes by a clock."""
    start = clock()
    run()
    return clock() - start


def in_turn(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Run each once untimed, then all in turn, and return each one's median seconds by a clock."""
    for run in runs.values():
        run()
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            taken[name].append(seconds(run, clock))
    return {name: statistics.median(times) for name, times in taken.items()}


def in_processes(
    script: str, variants: Sequence[str], rounds: int, *arguments: str
) -> dict[str, dict[str, float]]:
    """Run a script once a variant and round, in turn, each in a process of its own.

    Args:
        script: its file; called with ``--variant NAME`` it prints a JSON of numbers as its last
            line, see :func:`finish`.
        variants: their names.
        rounds: how often each runs.
        arguments: more of them, the same for all variants.

    Returns:
        By variant: the median of each number.
    """
    found: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name in variants:
            command = [sys.executable, script, "--variant", name, *arguments]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    return {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for name, runs in found.items()
    }


def peak_gb() -> float:
    """Return this process's largest resident memory so far, in gigabytes.

    On Linux by ``VmHWM``, which begins anew with a program: ``ru_maxrss`` goes on from the process
    that started it, so that a child of a large one would never report less than its parent had.
    """
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    marks = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return (marks[0] if marks else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 1e6


def finish(**numbers: float) -> None:
    """Print a variant's numbers and its peak memory, for :func:`in_processes`."""
    print(json.dumps({**numbers, "peak_gb": peak_gb()}))


def report(name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table, and write it with the machine to ``results/NAME.json``.

    Args:
        name: of the benchmark.
        columns: their headings.
        rows: numbers and words; numbers are rounded where they are shown, not in the file.
    """
    table = Table(*columns)
    for row in rows:
        table.add_row(*map(_shown, row))
    show_table(table, Terminal())
    found = {
        "machine": machine(),
        "rows": [dict(zip(columns, row, strict=True)) for row in rows],
    }
    with atomic_file(RESULTS / f"{name}.json") as file:
        file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """Return what numbers depend on."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text(encoding="utf-8").splitlines() if cpu.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else "unknown",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": str(compute_dtype("auto")).removeprefix("torch."),
    }


def _shown(value: object) -> str:
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
