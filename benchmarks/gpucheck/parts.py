"""The parts of the check, each in a process of its own."""

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from harness import RESULTS

from gpucheck import encoding, large, numbers, table, training
from gpucheck.device import describe
from gpucheck.rows import FAIL, NOT_RUN, Recorder, Row, read_rows
from gpucheck.workshop import Sizes, Workshop


@dataclass(frozen=True)
class Part:
    """Checks that run in one process.

    Attributes:
        run: takes the workshop and a recorder.
        about: what it checks, for a row if it does not run.
        seconds: it is not begun if less time is left.
    """

    run: Callable[[Workshop, Recorder], None]
    about: str
    seconds: int


PARTS = {
    "numbers": Part(numbers.numbers, "one step on the GPU and on the processor", 40),
    "float32": Part(training.float32, "three stages in float32", 40),
    "bfloat16": Part(training.bfloat16, "three stages in bfloat16", 40),
    "large": Part(large.large, "7B weights, three steps of each stage", 60),
    "encoding": Part(encoding.encoding, "embeddings and their speed", 30),
    "resume": Part(training.resume, "runs that are killed and continued", 60),
    "flash": Part(training.flash, "three stages with flash attention", 40),
    "compiled": Part(numbers.compiled, "one step of stage 1, compiled", 60),
    "4 bits": Part(training.four_bits, "three stages on weights in 4 bits", 40),
}
"""In the order in which they run: later ones use what earlier ones have trained."""
KILLED = {
    f"killed-{stage}": partial(training.killed, stage=stage) for stage in ("pretext", "supervised")
}
"""Runs that kill themselves; the part `resume` starts them."""


def check(script: Path, sizes: Sizes, limit: float, *, stand_in: bool) -> int:
    """Run all parts, print and write the table, and return the exit status.

    Args:
        script: runs one part if it is given `--part`.
        sizes: of what is trained.
        limit: seconds that all parts may take.
        stand_in: whether the processor is checked.
    """
    # Rows are drawn by the names of their files, and a relative name is the same in each call.
    script = script.resolve()
    with tempfile.TemporaryDirectory(prefix="llm2comp-gpu-check-") as folder, chdir(folder):
        start = time.monotonic()
        workshop = Workshop(Path(), sizes)
        os.environ.update(one_gpu(os.environ, stand_in=stand_in))
        backbone = workshop.prepare()
        rows = run_all(script, workshop, start + limit, stand_in=stand_in)
        about = table.about(workshop.folder, backbone, time.monotonic() - start)
    table.report(rows, about, RESULTS / ("gpu_check_stand_in" if stand_in else "gpu_check"))
    return int(any(row.result == FAIL for row in rows))


def run_part(name: str, workshop: Workshop) -> None:
    """Run the checks of one part in this process, and write their rows."""
    gc.freeze()  # what was imported, so that each check need not look through it again
    if name in KILLED:
        KILLED[name](workshop)
        return
    about = json.dumps(describe(), ensure_ascii=False)
    (workshop.folder / "device.json").write_text(about, encoding="utf-8")
    PARTS[name].run(workshop, Recorder(name, workshop.folder / f"{name}.rows"))


def run_all(script: Path, workshop: Workshop, deadline: float, *, stand_in: bool) -> list[Row]:
    """Run each part in a process of its own.

    Args:
        script: as `check` takes it.
        workshop: where.
        deadline: when all must be done, by `time.monotonic`.
        stand_in: whether the processor is checked.

    Returns:
        The rows of all parts.
    """
    rows = []
    for name, part in PARTS.items():
        left = deadline - time.monotonic()
        if left < part.seconds:
            why = f"{max(0, left):.0f} s were left, and it may take {part.seconds}"
            rows.append(Row(name, part.about, NOT_RUN, why))
            continue
        print(f"{name}: {part.about} ...", file=sys.stderr)
        command = [sys.executable, str(script), "--part", name, "--folder", str(workshop.folder)]
        ended = run_process([*command, *(["--stand-in"] if stand_in else [])], left)
        rows += read_rows(workshop.folder / f"{name}.rows")
        if ended:
            rows.append(Row(name, part.about, *ended))
    return rows


def run_process(command: list[str], seconds: float) -> tuple[str, str] | None:
    """Run a process and those that it starts, and end them when their time is over.

    Returns:
        None if it ended well, or else a result and what is known of it.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen(
            command, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return NOT_RUN, f"the rest was stopped after {seconds:.0f} s, when all time was used"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if status == 0:
            return None
        said.seek(0)
        last = ([line.strip() for line in said if line.strip()] or ["it said nothing"])[-1]
    return FAIL, f"the process ended with {status}: {last[:300]}"


def one_gpu(environment: "os._Environ[str]", *, stand_in: bool) -> dict[str, str]:
    """Return the variables of the environment in which parts run.

    They see one GPU, because training refuses to choose among several, and no network.

    Args:
        environment: of this process.
        stand_in: whether they see no GPU at all.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return {
        "CUDA_VISIBLE_DEVICES": "" if stand_in else visible,
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # which deterministic kernels need
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
