"""Encoding texts of real mixed lengths: ours, stock sentence-transformers, a peer, the roofline.

Six in ten texts are sentences, the others passages and articles, cut where the model cuts them.
They are encoded in blocks, each block by all in turn, since the machine is not equally fast all
the time: the released encoder as `llm2comp encode` loads it; the same folder by stock
`SentenceTransformer(...).encode(texts)` in float32 and bfloat16; all-MiniLM-L6-v2; and the
roofline, the linear layers of the encoder's body alone, in our precision and for our batches'
tokens less the padding. Shown for all texts, and for those of 64 tokens or more alone.

    python benchmarks/encode.py [--texts 5000] [--block 500]
"""

import argparse
import itertools
import random
from collections.abc import Callable

import numpy as np
import torch
from harness import report, seconds
from sentence_transformers import SentenceTransformer

from llm2comp import encoder, release
from llm2comp.batching import TOKENS_A_TEXT, batched
from llm2comp.data import catalog
from llm2comp.hardware import compute_dtype

MODEL = "smollm2-135m-llm2comp"
SHARES = {"nlp-corpus-sentences": 0.6, "boolq-passages": 0.25, "enwiki-passages": 0.15}
LONG = 64


def main() -> None:
    """Measure, print a table, write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=5000)
    parser.add_argument("--block", type=int, default=500)
    options = parser.parse_args()
    folder = str(release.fetch(MODEL))
    ours = release.load_model(MODEL, compute_dtype("auto"))
    contenders: dict[str, Callable[[list[str]], object]] = {
        "llm2comp": ours.encode,
        "stock, bfloat16": stock(folder, torch.bfloat16).encode,
        "stock, float32": stock(folder, torch.float32).encode,
        "all-MiniLM-L6-v2": stock(str(catalog.fetch("minilm")), torch.float32).encode,
    }
    texts = mixed(options.texts)
    counts = tokens(ours, texts)
    contenders["roofline"] = LinearLayers(ours, counts)
    long = [text for text in texts if counts[text] >= LONG]
    rows = []
    for about, chosen in (("all", texts), (f"{LONG} tokens or more", long)):
        taken = in_blocks(contenders, chosen, options.block)
        total = sum(counts[text] for text in chosen)
        for name, took in taken.items():
            rows.append(
                [
                    about,
                    len(chosen),
                    name,
                    total / took,
                    taken["stock, float32"] / took,
                    taken["stock, bfloat16"] / took,
                    taken["roofline"] / took,
                ]
            )
    columns = ["texts", "number", "", "tokens/s", "to stock float32", "to stock bfloat16"]
    report("encode", [*columns, "of the roofline"], rows)


def stock(source: str, dtype: torch.dtype) -> SentenceTransformer:
    """Load as anyone would."""
    return SentenceTransformer(source, device="cpu", model_kwargs={"dtype": dtype})


def mixed(count: int) -> list[str]:
    """Draw texts of the sources by their shares, in random order."""
    texts = [
        row["text"]
        for name, share in SHARES.items()
        for row in itertools.islice(catalog.rows(name), round(share * count))
    ]
    random.Random(0).shuffle(texts)
    return texts


def tokens(model: SentenceTransformer, texts: list[str]) -> dict[str, int]:
    """Count what the encoder reads of each text, memory tokens included."""
    return {text: int(model.preprocess([text])["attention_mask"].sum()) for text in texts}


def in_blocks(
    contenders: dict[str, Callable[[list[str]], object]], texts: list[str], block: int
) -> dict[str, float]:
    """Return the seconds of each over all blocks."""
    for run in contenders.values():
        run(texts[:8])
    taken = dict.fromkeys(contenders, 0.0)
    for start in range(0, len(texts), block):
        part = texts[start : start + block]
        for name, run in contenders.items():
            taken[name] += seconds(lambda run=run, part=part: run(part))
    return taken


class LinearLayers:
    """The linear layers of a model's body, for as many tokens as each of its batches has."""

    def __init__(self, model: SentenceTransformer, counts: dict[str, int]) -> None:
        body = encoder.encoder_body(model)
        self.layers = [module for module in body.modules() if isinstance(module, torch.nn.Linear)]
        self.counts = counts
        self.inputs = {
            width: torch.randn(32 * TOKENS_A_TEXT, width).to(body.dtype)
            for width in {layer.in_features for layer in self.layers}
        }

    @torch.inference_mode()
    def __call__(self, texts: list[str]) -> None:
        """Run them."""
        counts = np.array([self.counts[text] for text in texts])
        for rows in batched(counts, 32 * TOKENS_A_TEXT):
            for layer in self.layers:
                layer(self.inputs[layer.in_features][: counts[rows].sum()])


if __name__ == "__main__":
    main()
