"""Freed memory given back to the system, as glibc does by default, and kept, as llm2comp does.

Four steps of stage 1 on passages of 1,000 characters to 512 tokens, as in `pretext_step.py`, and
256 passages of `boolq-passages` encoded. Each in a process of its own, in turn, twice; timed is
what comes after a first round of the same.

    python benchmarks/freed_memory.py
"""

import argparse
import itertools
import resource
from collections.abc import Callable

import torch
from harness import finish, in_processes, report, seconds
from pretext_step import BACKBONE, SHAPES, Ours, draw, trainer

from llm2comp.data import catalog
from llm2comp.inference.load import load_in
from llm2comp.utils.hardware import compute_dtype, retain_freed_memory

MODEL = "smollm2-135m-llm2comp"
STEPS, TEXTS = 4, 256
VARIANTS = ("train given-back", "train kept", "encode given-back", "encode kept")
ROUNDS = 2


def main() -> None:
    """Measure every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    case = parser.parse_args().variant
    if case:
        measure(*case.split())
        return
    found = in_processes(__file__, VARIANTS, ROUNDS)
    columns = ["", "texts/s", "seconds in the kernel", "page faults", "peak (GB)"]
    rows = [
        [name, one["rate"], one["kernel"], int(one["faults"]), one["peak_gb"]]
        for name, one in found.items()
    ]
    report("freed_memory", columns, rows)


def measure(what: str, how: str) -> None:
    """Do the same twice in this process and print what the second time took."""
    if how == "kept":
        retain_freed_memory()
    count, run = {"train": training, "encode": encoding}[what]()
    run()
    before = resource.getrusage(resource.RUSAGE_SELF)
    taken = seconds(run)
    after = resource.getrusage(resource.RUSAGE_SELF)
    finish(
        rate=count / taken,
        kernel=after.ru_stime - before.ru_stime,
        faults=after.ru_minflt - before.ru_minflt,
    )


def training() -> tuple[int, Callable[[], object]]:
    """Return how many passages there are, and what trains on them."""
    batches = draw(list(SHAPES)[-1], STEPS, grouped=True)
    step = trainer(Ours(BACKBONE, compute_dtype("auto")))
    return sum(map(len, batches)), lambda: [step(batch) for batch in batches]


def encoding() -> tuple[int, Callable[[], object]]:
    """Return how many texts there are, and what encodes them."""
    model = load_in(MODEL, compute_dtype("auto"))
    texts = [row["text"] for row in itertools.islice(catalog.rows("boolq-passages"), TEXTS)]
    return len(texts), lambda: model.encode(texts)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
