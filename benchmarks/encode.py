"""Encoding of mixed texts: llm2comp, stock sentence-transformers, MiniLM, and the roofline.

The texts are a third each sentences, Wikipedia passages and news articles, drawn by a seed, and
cut at the model's longest. They go through in slices of 250: each slice's texts of fewer than
64 tokens (with the memory tokens), then its others, are encoded by all in turn, so that a busy
minute of the machine is everyone's. Times are summed over slices; nothing is timed twice. A file
is padded less than slices are: it is sorted 4,096 texts at once.

- matrix products alone: the roofline. The linear layers of the body on random numbers, as many
  rows for each batch as llm2comp computes for it, padding included, and attention's products of a
  block of queries with the keys up to its end; and nothing else. Linear layers alone are a row too.
- llm2comp: `release.load_model` in bfloat16 where it is native, batches by tokens, attention by
  products; and the same shared by as many workers as there are threads.
- stock: `SentenceTransformer(folder).encode` with its defaults, in float32 and bfloat16.
- minilm: all-MiniLM-L6-v2 likewise, in float32. It reads at most 256 tokens of a text, by a
  tokenizer of its own, so its tokens are others; how much faster it is goes by texts.

    python benchmarks/encode.py [--texts 5000]
"""

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from harness import report, roofline
from sentence_transformers import SentenceTransformer

from llm2comp.data import catalog, sample
from llm2comp.inference import worker_pool
from llm2comp.inference.load import load_in
from llm2comp.inference.precision import smallest_cosine
from llm2comp.model import released
from llm2comp.utils.hardware import compute_dtype, retain_freed_memory

MODEL = "smollm2-135m-llm2comp"
SOURCES = ("nlp-corpus-sentences", "boolq-passages", "news-passages")
SLICE = 250
LONG = 64
LINEAR, ROOFLINE = "linear layers alone", "matrix products alone"
STOCK, MINILM = "stock float32", "minilm"


@dataclass
class Part:
    """Texts of a slice, short or long ones, and the tokens of each as the encoder reads them."""

    texts: list[str]
    tokens: np.ndarray
    long: bool


@dataclass
class Total:
    """What one took, by whether texts are long; how far its vectors are from stock float32's."""

    seconds: dict[bool, float] = field(default_factory=lambda: {False: 0.0, True: 0.0})
    tokens: dict[bool, int] = field(default_factory=lambda: {False: 0, True: 0})
    difference: float = 0.0


def main() -> None:
    """Measure, print a table, write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=5000)
    options = parser.parse_args()
    retain_freed_memory()  # as the command line does; it makes all of them faster
    dtype = compute_dtype("auto")
    ours = load_in(MODEL, dtype).to("cpu")
    stock = {
        f"stock {str(one).removeprefix('torch.')}": _stock(str(released.fetch(MODEL)), one)
        for one in dict.fromkeys((torch.float32, dtype))
    }
    minilm = _stock(str(catalog.fetch(MINILM)), torch.float32)
    linear, attention = roofline.linear_layers(ours, dtype), roofline.attention(ours, dtype)
    with ExitStack() as stack:
        runs: dict[str, Callable[[Part], Any]] = {
            LINEAR: lambda part: linear(part.tokens),
            ROOFLINE: lambda part: (linear(part.tokens), attention(part.tokens)),
            "llm2comp": lambda part: ours.encode(part.texts),
        }
        threads = torch.get_num_threads()
        if threads > 1:
            shared = load_in(MODEL, dtype)  # for the other's weights stay as they are
            pool = stack.enter_context(worker_pool.start(shared, threads))
            runs[f"llm2comp, {threads} workers"] = lambda p: shared.encode(p.texts, pool=pool)
        for name, model in (stock | {MINILM: minilm}).items():
            runs[name] = lambda part, model=model: model.encode(part.texts)
        totals = _measure(runs, _parts(_texts(options.texts), ours), minilm)
    report("encode", *_table(totals))


def _stock(folder: str, dtype: torch.dtype) -> SentenceTransformer:
    return SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": dtype})


def _texts(count: int) -> list[str]:
    each = -(-count // len(SOURCES))
    texts = [text for name in SOURCES for text in sample.draw(name, each, seed=0).texts]
    order = np.random.default_rng(0).permutation(len(texts))
    return [texts[place] for place in order[:count]]


def _tokens(model: SentenceTransformer, texts: list[str]) -> np.ndarray:
    return model.preprocess(texts)["attention_mask"].sum(1).numpy()


def _parts(texts: list[str], model: SentenceTransformer) -> list[Part]:
    parts = []
    for start in range(0, len(texts), SLICE):
        tokens = _tokens(model, texts[start : start + SLICE])
        for long in (False, True):
            places = np.flatnonzero((tokens >= LONG) == long)
            if len(places):
                parts.append(Part([texts[start + i] for i in places], tokens[places], long))
    return parts


def _measure(
    runs: dict[str, Callable[[Part], Any]], parts: Sequence[Part], minilm: SentenceTransformer
) -> dict[str, Total]:
    totals = {name: Total() for name in runs}
    for run in runs.values():
        run(Part(parts[0].texts[:4], parts[0].tokens[:4], long=False))
    for part in parts:
        found = {}
        for name, run in runs.items():
            start = time.perf_counter()
            found[name] = run(part)
            totals[name].seconds[part.long] += time.perf_counter() - start
            tokens = _tokens(minilm, part.texts) if name == MINILM else part.tokens
            totals[name].tokens[part.long] += int(tokens.sum())
        for name, vectors in found.items():
            if name not in (LINEAR, ROOFLINE, MINILM):
                difference = 1 - smallest_cosine(vectors, found[STOCK])
                totals[name].difference = max(totals[name].difference, difference)
    return totals


def _table(totals: dict[str, Total]) -> tuple[list[str], list[list[object]]]:
    columns, rows = [""], {name: [name] for name in totals}
    for label, kinds in (("", (False, True)), (f"{LONG}+: ", (True,))):
        columns += [label + what for what in ("tokens/s", "x float32", "of roofline")]
        spent = {name: sum(total.seconds[kind] for kind in kinds) for name, total in totals.items()}
        for name, total in totals.items():
            tokens = sum(total.tokens[kind] for kind in kinds)
            share = "" if name == MINILM else spent[ROOFLINE] / spent[name]
            rows[name] += [tokens / spent[name], spent[STOCK] / spent[name], share]
    columns.append("cosine difference")
    for name, total in totals.items():
        rows[name].append("" if name in (LINEAR, ROOFLINE, MINILM) else total.difference)
    return columns, list(rows.values())


if __name__ == "__main__":
    main()
