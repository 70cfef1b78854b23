"""Checks a GPU: is what is computed on it right, how fast is it, and does it take what was planned.

One table has a row for each check, and each says whether it passed, failed or was not run. Every
part runs in a process of its own, so that one that fails, runs out of memory or hangs leaves the
others as they are. Nothing is downloaded if SmolLM2-135M is in the cache; without it and without a
network, a random model of its shape takes its place.

    python benchmarks/gpu_check.py              # needs a GPU and at most 8 minutes
    python benchmarks/gpu_check.py --stand-in   # the same on a processor, with tiny shapes

The exit status is 1 if a check failed, and 2 if there is no GPU.
"""

import argparse
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

import torch
from gpucheck import encoding, large, numbers, table, training
from gpucheck.device import describe
from gpucheck.rows import FAIL, NOT_RUN, Recorder, Row, read_rows
from gpucheck.workshop import REAL, TINY, Workshop
from harness import RESULTS

LIMIT = 480
"""Seconds that all checks may take."""


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


def main() -> int:
    """Run all parts, print and write the table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stand-in", action="store_true", help="check a processor, as a test")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds, 480 by default")
    parser.add_argument("--part", choices=[*PARTS, *KILLED], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = TINY if options.stand_in else REAL
    if options.part:
        run_part(options.part, Workshop(options.folder, sizes))
        return 0
    if not (options.stand_in or torch.cuda.is_available()):
        print(
            "No GPU is visible to PyTorch; run this on a machine with one (llm2comp doctor), or "
            "give --stand-in to try the checks on the processor",
            file=sys.stderr,
        )
        return 2
    # Rows are drawn by the names of their files, and a relative name is the same in each call.
    with tempfile.TemporaryDirectory(prefix="llm2comp-gpu-check-") as folder, chdir(folder):
        start = time.monotonic()
        workshop = Workshop(Path(), sizes)
        environment = one_gpu(os.environ, stand_in=options.stand_in)
        os.environ.update(environment)
        backbone = workshop.prepare()
        rows = run_all(workshop, start + options.limit, stand_in=options.stand_in)
        about = table.about(workshop.folder, backbone, time.monotonic() - start)
    name = "gpu_check_stand_in" if options.stand_in else "gpu_check"
    table.report(rows, about, RESULTS / name)
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


def run_all(workshop: Workshop, deadline: float, *, stand_in: bool) -> list[Row]:
    """Run each part in a process of its own.

    Args:
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
        command = [sys.executable, __file__, "--part", name, "--folder", str(workshop.folder)]
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


if __name__ == "__main__":
    sys.exit(main())
