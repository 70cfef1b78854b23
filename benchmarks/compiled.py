"""The released encoder in PyTorch and compiled, in turn: texts a second, and the loss.

128 passages of `boolq-passages`, those of one call. Exporting checks each on STSBenchmark.

    python benchmarks/compiled.py
"""

import tempfile
from functools import partial
from pathlib import Path

import torch
from harness import in_turn, report

from llm2comp.data import catalog
from llm2comp.evaluation.checked_export import export
from llm2comp.inference import compiled
from llm2comp.inference.load import load_in
from llm2comp.utils.hardware import retain_freed_memory

MODEL = "smollm2-135m-llm2comp"
TEXTS = 128
ROUNDS = 3


def main() -> None:
    """Export, measure, print a table, write the numbers."""
    retain_freed_memory()  # as the command line does
    rows = catalog.rows("boolq-passages")
    texts = [next(rows)["text"] for _ in range(TEXTS)]
    models = {
        str(dtype).removeprefix("torch."): load_in(MODEL, dtype).to("cpu")
        for dtype in (torch.float32, torch.bfloat16)
    }
    checks = {}
    with tempfile.TemporaryDirectory() as scratch:
        for to in compiled.PACKAGES:
            for int8 in (False, True):
                name = to + " int8" * int8
                checks[name] = export(MODEL, to, Path(scratch) / name, int8=int8)
                models[name] = compiled.load(Path(scratch) / name)
        seconds = in_turn({name: partial(m.encode, texts) for name, m in models.items()}, ROUNDS)
    rates = {name: TEXTS / taken for name, taken in seconds.items()}
    columns = ["", "texts/s", "ratio", "largest cosine difference", "loss on STSBenchmark"]
    table: list[list[object]] = []
    for name, rate in rates.items():
        check = checks.get(name)
        cost = [check.difference, check.before - check.after] if check else ["", ""]
        table.append([name, rate, rate / rates["float32"], *cost])
    report("compiled", columns, table)


if __name__ == "__main__":
    main()
