"""The released encoder in PyTorch and compiled, in turn: texts a second, and the loss."""

import json
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from harness import in_turn
from rich.console import Console
from rich.table import Table

from llm2comp import compiled, release
from llm2comp.cache import whole_file
from llm2comp.data import catalog
from llm2comp.export import export

MODEL = "smollm2-135m-llm2comp"
TEXTS = 128
ROUNDS = 3
RESULT = Path(__file__).parent / "results" / "compiled.json"


def main() -> None:
    """Export, measure, print a table, write the numbers."""
    rows = catalog.rows("boolq-passages")
    texts = [next(rows)["text"] for _ in range(TEXTS)]
    models = {
        str(dtype).removeprefix("torch."): release.load_model(MODEL, dtype).to("cpu")
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
    table = Table("", "texts/s", "ratio", "largest cosine difference", "loss on STSBenchmark")
    for name, rate in rates.items():
        check = checks.get(name)
        cost = (f"{check.difference:.1e}", f"{check.before - check.after:.2f}") if check else ()
        table.add_row(name, f"{rate:.1f}", f"{rate / rates['float32']:.2f}", *cost)
    Console().print(table)
    found = {name: asdict(check) for name, check in checks.items()}
    with whole_file(RESULT) as file:
        file.write_text(json.dumps({"texts_per_second": rates, "checks": found}) + "\n")


if __name__ == "__main__":
    main()
