"""Every loss has the value and the gradient of one process, however a batch is dealt."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformer
from torch import Tensor

from llm2comp.model.matryoshka.nested_tokens import NestedTokens, nest
from llm2comp.model.multi_vector.memory_vectors import MemoryVectors
from llm2comp.recipe import Supervised
from llm2comp.training.distributed import world
from llm2comp.training.distributed.shares import as_part_of_a_sum
from llm2comp.training.losses.choose import losses_of
from llm2comp.training.losses.gathered import Gathered
from llm2comp.training.losses.length_sorted import LengthSorted
from llm2comp.training.losses.matryoshka import matryoshka

PROCESSES = 3
DIMENSION = 16
Rows = list[dict[str, Any]]


def mined(sentences: list[str]) -> Rows:
    """Five rows for three processes; a row has none, one or two negatives."""
    words = " ".join(sentences).split()
    negatives = [2, 0, 1, 0, 0]
    return [
        {
            "anchor": " ".join(words[i : i + 2 + i]),
            "positive": " ".join(words[i + 20 : i + 26]),
            "negative": [" ".join(words[30 + i + n : 40 + n]) for n in range(negatives[i])],
        }
        for i in range(5)
    ]


def with_one_negative(sentences: list[str]) -> Rows:
    return [row | {"negative": row["negative"][:1]} for row in mined(sentences)[1:]]


def fewer_than_processes(sentences: list[str]) -> Rows:
    return mined(sentences)[:2]


def scored(sentences: list[str]) -> Rows:
    return [
        {"anchor": row["anchor"], "positive": row["positive"], "score": float(i % 3)}
        for i, row in enumerate(mined(sentences))
    ]


def with_scores_of_a_teacher(sentences: list[str]) -> Rows:
    return [
        {"anchor": row["anchor"], "positive": row["positive"], "negative_1": sentences[i]}
        | {"label": [float(i), 1.0]}
        for i, row in enumerate(mined(sentences))
    ]


def with_vectors_of_a_teacher(sentences: list[str]) -> Rows:
    generator = torch.Generator().manual_seed(0)
    return [
        {"anchor": row["anchor"], "positive": row["positive"]}
        | {"label": torch.randn(2, DIMENSION, generator=generator).tolist()}
        for row in mined(sentences)
    ]


CASES: dict[str, tuple[dict[str, Any], Callable[[list[str]], Rows]]] = {
    "one mini-batch": ({}, mined),
    "mini-batches": ({"mini_batch_size": 1}, mined),
    "tokens": ({"mini_batch_tokens": 12}, mined),
    "guide": ({"guide": "the bert"}, mined),
    "matryoshka": ({"matryoshka": [16, 4]}, mined),
    "matryoshka in mini-batches": ({"matryoshka": [16, 4], "mini_batch_size": 1}, mined),
    "one negative": ({"mini_batch_size": 1}, with_one_negative),
    "two rows": ({}, fewer_than_processes),
    "two rows in mini-batches": ({"mini_batch_size": 1}, fewer_than_processes),
    "scores": ({}, scored),
    "scores, matryoshka": ({"matryoshka": [16, 4]}, scored),
    "k vectors": ({"vectors": "k"}, mined),
    "k vectors in mini-batches": ({"vectors": "k", "mini_batch_size": 1}, mined),
    "k vectors, two rows": ({"vectors": "k"}, fewer_than_processes),
    "k vectors, scores": ({"vectors": "k"}, scored),
    "first tokens": ({"matryoshka_tokens": [2, 1]}, mined),
    "first tokens in mini-batches": ({"matryoshka_tokens": [2, 1], "mini_batch_size": 2}, mined),
    "first tokens, two rows": ({"matryoshka_tokens": [2, 1]}, fewer_than_processes),
    "first tokens, scores": ({"matryoshka_tokens": [2, 1]}, scored),
    "first tokens, vectors of a teacher": (
        {"matryoshka_tokens": [2, 1]},
        with_vectors_of_a_teacher,
    ),
    "scores of a teacher": ({}, with_scores_of_a_teacher),
    "vectors of a teacher": ({}, with_vectors_of_a_teacher),
    "vectors of a teacher, matryoshka": ({"matryoshka": [16, 4]}, with_vectors_of_a_teacher),
}


def value_and_gradient(bert: Path, name: str, sentences: list[str]) -> Tensor:
    """Return the loss, and after it its gradient as the Trainer would have it."""
    changes, rows = CASES[name]
    settings = {"data": [{"source": "a"}], "steps": 1, "batch_size": 6, "learning_rate": 1.0}
    if "guide" in changes:
        changes = {"guide": str(bert)}
    stage = Supervised.model_validate(settings | changes)
    model = SentenceTransformer(str(bert), device="cpu").train(False)
    # A BERT has two tokens that are in each text once.
    ids = [model.tokenizer.cls_token_id, model.tokenizer.sep_token_id]
    if stage.vectors == "k":
        model.append(MemoryVectors(ids, beside="training").train())
    if stage.matryoshka_tokens is not None:
        nest(model, NestedTokens(ids, stage.matryoshka_tokens, passes=2).train())
    data = DatasetDict({"a": Dataset.from_list(rows(sentences))})
    losses, gathered = losses_of(model, stage, data), Gathered()
    assert isinstance(losses, dict)
    if world.size() > 1:
        gathered.attach_to(losses.values())
    nested = matryoshka(model, losses, stage.matryoshka)
    assert isinstance(nested, dict)
    collator = LengthSorted(preprocess_fn=model.preprocess)
    batch = collator([data["a"][i] for i in range(len(data["a"]))])
    gathered.counts = batch.pop("counts", [])
    columns = [key.removesuffix("input_ids") for key in batch if key.endswith("_input_ids")]
    features = [
        {key.removeprefix(column): batch[key] for key in batch if key.startswith(column)}
        for column in columns
    ]
    loss = nested["a"](features, batch.get("label"))
    if world.size() > 1:
        loss = as_part_of_a_sum(loss)
    loss.backward()
    parts = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    mean = world.total(torch.cat(parts)) / world.size()
    return torch.cat([loss.detach().view(1), mean])


def be_process(rank: int, bert: Path, sentences: list[str], folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", store=dist.FileStore(str(folder / "store"), 3), rank=rank, world_size=3
    )
    found = {name: value_and_gradient(bert, name, sentences) for name in CASES}
    torch.save(found, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def found(
    bert: Path, sentences: list[str], tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Tensor]]:
    """Value and gradient of each case, in each process."""
    folder = tmp_path_factory.mktemp("losses")
    fork = multiprocessing.get_context("fork")
    children = [
        fork.Process(target=be_process, args=(rank, bert, sentences, folder))
        for rank in range(PROCESSES)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
        child.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


@pytest.mark.parametrize("name", CASES)
def test_a_loss_over_processes_is_that_of_one_process(
    bert: Path, sentences: list[str], found: list[dict[str, Tensor]], name: str
) -> None:
    expected = value_and_gradient(bert, name, sentences)
    assert expected[0] > 0.01
    largest = expected.abs().max().item()
    assert expected[1:].abs().max() > 1e-3
    for of_process in found:
        torch.testing.assert_close(of_process[name], expected, atol=1e-5 * largest, rtol=1e-4)
