"""Every passage counts the same in stage 1, whatever batch it is in (paper: mean over samples)."""

import random
from pathlib import Path

import pytest
import torch
from subjects import make_subject
from transformers import AutoTokenizer, TrainingArguments

from llm2comp.data.length_batching import group_by_length
from llm2comp.model.lora import trainable_parameters
from llm2comp.recipe import Pretext
from llm2comp.recipe_parts import DataSource
from llm2comp.training.objectives.mntp import MaskedNextTokenPrediction
from llm2comp.training.objectives.registry import OBJECTIVES
from llm2comp.training.pretext import Collator, PretextModel, PretextTrainer

BATCH_SIZE = 4
SAMPLE_MEANS = [n for n, kind in OBJECTIVES.items() if kind is not MaskedNextTokenPrediction]
"""Objectives whose loss is a mean over samples. That of MNTP is over drawn tokens, as LLM2Vec's."""


@pytest.mark.parametrize("name", SAMPLE_MEANS)
def test_the_gradient_of_an_epoch_is_the_mean_over_passages(
    tiny_backbone: Path, name: str, tmp_path: Path
) -> None:
    case = make_subject(tiny_backbone, name, causal=True)
    generator = random.Random(0)
    lengths = [generator.choice([4, 6, 9, 30, 60]) for _ in range(6 * BATCH_SIZE)]
    passages = [[generator.randrange(10, 250) for _ in range(length)] for length in lengths]
    splits = [n if case.objective.whole_passage else generator.randrange(1, n) for n in lengths]
    collator = Collator(case.compressor.memory_ids, case.compressor.bos_id, 0)
    model = PretextModel(case.compressor, case.objective)
    parameters = trainable_parameters(case.compressor).values()

    for passage, split in zip(passages, splits, strict=True):
        loss = case.objective.loss(case.compressor, collator.batch([passage], [split]))
        (loss / len(passages)).backward()
    expected = [parameter.grad.clone() for parameter in parameters]

    case.compressor.zero_grad()
    batches = list(group_by_length(lengths, BATCH_SIZE))
    assert len({len(batch) for batch in batches}) > 2
    source = DataSource(source="texts.txt")
    stage = Pretext(data=[source], steps=6, batch_size=BATCH_SIZE, learning_rate=1.0)
    trainer = PretextTrainer(
        stage=stage,
        tokenizer=AutoTokenizer.from_pretrained(tiny_backbone),
        model=model,
        args=TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True),
    )
    for batch in batches:
        row = {"input_ids": [passages[i] for i in batch], "split": [splits[i] for i in batch]}
        (trainer.compute_loss(model, collator([row])) / len(batches)).backward()
    found = [parameter.grad for parameter in parameters]

    assert max(gradient.abs().max() for gradient in expected) > 1e-3
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
