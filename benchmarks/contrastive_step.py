"""A contrastive step by batch: time and peak memory, cached as in stage 3 and plain.

The loss and the collator of `llm2comp.stages.contrastive`, 32 texts in memory at once, against
sentence-transformers' loss without a cache where that fits. Questions and passages of `boolq-pairs`
up to 64 tokens, the released stage 1 with a fresh adapter. Each case runs in a process of its own.

    python benchmarks/contrastive_step.py
"""

import argparse
import itertools

import torch
from harness import finish, in_processes, peak_gb, report, seconds
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)

from llm2comp import recipe
from llm2comp.data import catalog
from llm2comp.inference.load import load_in
from llm2comp.model import encoder
from llm2comp.model.lora import add_adapter, trainable_parameters
from llm2comp.training.losses.length_sorted import LengthSorted
from llm2comp.utils.hardware import compute_dtype, retain_freed_memory

MODEL = "smollm2-135m-llm2comp/1-pretext"
K = 8
CASES = ("cached 32", "cached 128", "cached 512", "cached 1024", "plain 32", "plain 128")
MINI_BATCH = 32
MAX_LENGTH = 64


def main() -> None:
    """Measure every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", choices=CASES, help=argparse.SUPPRESS)
    case = parser.parse_args().variant
    if case:
        measure(*case.split())
        return
    found = in_processes(__file__, CASES, 1)
    smallest = found["cached 32"]["peak_gb"]
    columns = ["loss, batch", "s/step", "ms/pair", "loaded (GB)", "peak (GB)", "peak to cached 32"]
    rows = [
        [
            name,
            one["seconds"],
            1000 * one["seconds"] / int(name.split()[1]),
            one["loaded"],
            one["peak_gb"],
            one["peak_gb"] / smallest,
        ]
        for name, one in found.items()
    ]
    report("contrastive_step", columns, rows)


def measure(kind: str, size: str) -> None:
    """Take a step to warm up and one that is timed."""
    retain_freed_memory()  # as the command line does
    dtype = compute_dtype("auto")
    model = load_in(MODEL, dtype)
    model.requires_grad_(False)
    adapted = add_adapter(encoder.encoder_body(model), recipe.Lora(r=12, alpha=24, dropout=0.0), K)
    model.max_seq_length = MAX_LENGTH + model.tokenizer.num_special_tokens_to_add()
    parameters = list(trainable_parameters(adapted).values())
    optimiser = torch.optim.AdamW(parameters, lr=1e-5)
    loss_of = (
        MultipleNegativesRankingLoss(model, scale=20.0)
        if kind == "plain"
        else CachedMultipleNegativesRankingLoss(model, scale=20.0, mini_batch_size=MINI_BATCH)
    )
    collate = LengthSorted(preprocess_fn=model.preprocess)
    drawn = itertools.islice(catalog.rows("boolq-pairs"), int(size))
    rows = [{"anchor": row["anchor"], "positive": row["positive"]} for row in drawn]
    model.train()
    loaded = peak_gb()

    def step() -> None:
        batch = collate(rows)
        features = [
            {name: batch[f"{column}_{name}"] for name in ("input_ids", "attention_mask")}
            for column in ("anchor", "positive")
        ]
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            loss = loss_of(features, torch.empty(0))
            loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad()

    if int(size) <= 128:  # the first step of a process is slow; of many mini-batches it is one
        step()
    finish(seconds=seconds(step), loaded=loaded)


if __name__ == "__main__":
    main()
