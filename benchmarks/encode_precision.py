"""Encoding in float32 against bfloat16, in turn: texts a second, and how vectors differ."""

import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from llm2comp import release
from llm2comp.cache import whole_file
from llm2comp.data import catalog

MODEL = "smollm2-135m-llm2comp"
TEXTS = 128
ROUNDS = 3
RESULT = Path(__file__).parent / "results" / "encode_precision.json"


def main() -> None:
    """Measure, print a table, write the numbers."""
    rows = catalog.rows("boolq-passages")
    texts = [next(rows)["text"] for _ in range(TEXTS)]
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    models = {name: release.load_model(MODEL, dtype) for name, dtype in dtypes.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    vectors: dict[str, np.ndarray] = {}
    for _ in range(ROUNDS):
        for name, model in models.items():
            start = time.perf_counter()
            vectors[name] = model.encode(texts)
            seconds[name].append(time.perf_counter() - start)
    rates = {name: TEXTS / statistics.median(taken) for name, taken in seconds.items()}
    cosine = float((vectors["float32"] * vectors["bfloat16"]).sum(1).min())
    table = Table("precision", "texts/s", "ratio")
    for name, rate in rates.items():
        table.add_row(name, f"{rate:.1f}", f"{rate / rates['float32']:.2f}")
    Console().print(table, f"smallest cosine between the two: {cosine:.5f}")
    with whole_file(RESULT) as file:
        file.write_text(json.dumps({"texts_per_second": rates, "smallest_cosine": cosine}) + "\n")


if __name__ == "__main__":
    main()
