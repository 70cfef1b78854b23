"""The backward pass of a 32-layer model: with gradient checkpointing, in turn with none.

A random Llama of 32 layers with its adapter takes steps of CTKD on random passages. With
checkpointing each layer is computed once more, with the adapter on or off as it was at first. Time
of the forward and backward pass, medians in turn, and their ratio.

    python benchmarks/gradient_checkpointing.py [--width 256] [--rounds 7]
"""

import argparse
import random
from statistics import median
from time import perf_counter

import torch
from harness import report
from transformers import LlamaConfig, LlamaForCausalLM

from llm2comp import recipe
from llm2comp.model.attention import configure_attention
from llm2comp.model.compressor import Compressor
from llm2comp.training.objectives.batch import Batch
from llm2comp.training.objectives.distillation import Distillation

LAYERS, HEADS, TOKENS, K = 32, 8, 1000, 8
PASSAGES, LENGTH, SPLIT = 8, 64, 40


def main() -> None:
    """Measure, print a table, write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    compressors = {"without": _compressor(options.width), "with": _compressor(options.width)}
    compressors["with"].enable_gradient_checkpointing()
    taken: dict[tuple[str, str], list[float]] = {}
    for _ in range(1 + options.rounds):
        for name, compressor in compressors.items():
            batch = _batch(compressor)
            start = perf_counter()
            loss = Distillation().loss(compressor, batch)
            middle = perf_counter()
            loss.backward()
            end = perf_counter()
            taken.setdefault(("forward", name), []).append(middle - start)
            taken.setdefault(("backward", name), []).append(end - middle)
    rows: list[list[object]] = []
    for part in ("forward", "backward"):
        plain, checkpointed = (median(taken[part, name][1:]) for name in compressors)
        rows.append([part, plain, checkpointed, checkpointed / plain])
    report("gradient_checkpointing", ["", "s without", "s with", "ratio"], rows)


def _compressor(width: int) -> Compressor:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=TOKENS,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
    )
    model = LlamaForCausalLM(config)
    configure_attention(model)
    return Compressor(model, K, recipe.Lora(dropout=0.0), bos_id=1, causal=True).train()


def _batch(compressor: Compressor) -> Batch:
    generator = random.Random(0)
    passages = [[generator.randrange(9, 900) for _ in range(LENGTH)] for _ in range(PASSAGES)]
    return Batch.of(
        passages, [SPLIT] * PASSAGES, memory_ids=compressor.memory_ids, bos_id=1, pad_id=0
    )


if __name__ == "__main__":
    main()
