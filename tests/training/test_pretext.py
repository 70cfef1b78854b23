"""Splits, the gap, the warning when memory carries nothing, and starting from a trained stage 1."""

import json
import logging
import random
from pathlib import Path

import pytest
import torch

from llm2comp import recipe
from llm2comp.data.drawn.batches import split_points
from llm2comp.data.length_batching import WINDOW, group_by_length
from llm2comp.errors import UserError
from llm2comp.model.compressor import Compressor
from llm2comp.training import pipeline, pretext
from llm2comp.training.monitoring import held_out
from llm2comp.training.objectives.batch import Batch
from llm2comp.training.objectives.continuation import Continuation
from llm2comp.training.objectives.mntp import MaskedNextTokenPrediction
from llm2comp.training.objectives.objective import Objective
from llm2comp.training.objectives.prefix_reconstruction import PrefixReconstruction
from llm2comp.training.objectives.reconstruction import Reconstruction
from llm2comp.training.objectives.registry import OBJECTIVES


def stage(batch_size: int = 2, **split: object) -> recipe.Pretext:
    return recipe.Pretext.model_validate(
        {
            "data": [{"source": "x"}],
            "steps": 1,
            "batch_size": batch_size,
            "learning_rate": 1.0,
            "split": split,
        }
    )


def draw(lengths: list[int], rule: recipe.Pretext) -> list[int]:
    """Cut passages in batches, one batch per step."""
    generator, size = random.Random(0), rule.batch_size
    batches = [lengths[i : i + size] for i in range(0, len(lengths), size)]
    return [
        split
        for step, batch in enumerate(batches)
        for split in split_points(batch, rule.split, step, generator)
    ]


@pytest.mark.parametrize(("add_bos", "bos"), [(True, [1]), (None, [1]), (False, [])])
def test_encoder_student_and_teacher_agree_on_bos(
    tiny_recipe: Path, add_bos: bool | None, bos: list[int]
) -> None:
    run = recipe.load_recipe(tiny_recipe)
    backbone = run.backbone.model_copy(update={"add_bos": add_bos})
    run = run.model_copy(update={"backbone": backbone})
    first = run.stages[0]
    assert isinstance(first, recipe.Pretext)
    model, tokenizer, _ = pretext._extended_backbone(run, first, torch.float32)
    trained, collator = pretext.pretext_model(run, first, model, tokenizer)
    compressor = trained.compressor.eval()
    batch = collator.batch([[5, 6, 7, 8]], [2])
    assert batch.input_ids.tolist() == [[*bos, 5, 6, *compressor.memory_ids]]
    assert batch.passage_ids.tolist() == [[*bos, 5, 6, 7, 8]]  # what the teacher reads
    assert tokenizer("")["input_ids"] == [*bos, *compressor.memory_ids]
    # The student reads `BOS memory n_3 n_4`, here with token embeddings in place of memory.
    targets = torch.ones(1, 3, dtype=torch.bool)
    memory = compressor.body.get_input_embeddings()(torch.tensor([[5, 6]]))
    student = compressor.student_states(memory, torch.tensor([[7, 8]]), targets)
    wanted = torch.tensor([[*bos, 0, 0, 0, 0]]) != torch.tensor([[*bos, 0, 1, 1, 1]])
    plain = compressor.teacher_states(torch.tensor([[*bos, 5, 6, 7, 8]]), wanted)
    torch.testing.assert_close(student, plain)


def test_the_paper_s_split_is_uniform_between_10_and_the_length_minus_10() -> None:
    splits = draw([30] * 6000, stage())
    assert set(splits) == set(range(10, 21))
    for point in range(10, 21):
        assert splits.count(point) == pytest.approx(6000 / 11, rel=0.2)


def test_a_split_leaves_text_and_continuation_in_any_passage() -> None:
    for rule in (stage(), stage(low=48, high=48), stage(low=24, high=80, per="batch")):
        lengths = [random.Random(i).randint(2, 100) for i in range(400)]
        for length, a in zip(lengths, draw(lengths, rule), strict=True):
            assert 0 < a < length


def test_a_ramp_widens_from_a_fixed_split() -> None:
    rule = stage(low=10, high=90, start=50, ramp_steps=100, per="batch")
    splits = draw([200] * 600, rule)
    assert splits[:2] == [50, 50]
    assert all(a == b for a, b in zip(splits[::2], splits[1::2], strict=True)), (
        "one split per batch"
    )
    for step, a in enumerate(splits[::2]):
        widest = 40 * min(1.0, step / 100)
        assert 50 - widest - 1 <= a <= 50 + widest + 1
    assert max(splits) > 80


def test_every_passage_is_in_one_batch_of_its_window() -> None:
    generator = random.Random(0)
    for count, size in ((8 * WINDOW * 2 + 5, 8), (3, 8), (7, 1), (1, 1)):
        lengths = [generator.choice([2, 30, 60, 500]) for _ in range(count)]
        batches = list(group_by_length(lengths, size))
        assert sorted(i for batch in batches for i in batch) == list(range(count))
        assert len(batches) == -(-count // size)
        assert all(batches), "none is empty"
        for place, batch in enumerate(batches):
            assert {i // (size * WINDOW) for i in batch} == {place // WINDOW}


def test_batches_have_about_the_same_number_of_tokens_and_little_padding() -> None:
    generator = random.Random(0)
    lengths = [round(generator.lognormvariate(5, 0.5)) for _ in range(8 * WINDOW * 10)]

    def padded(batches: list[list[int]]) -> list[int]:
        return [len(batch) * max(lengths[i] for i in batch) for batch in batches]

    as_drawn = padded([list(range(i, i + 8)) for i in range(0, len(lengths), 8)])
    grouped = padded(list(group_by_length(lengths, 8)))
    assert sum(as_drawn) > 1.5 * sum(lengths)
    assert sum(grouped) < 1.12 * sum(lengths)
    assert max(grouped) < max(as_drawn)


def test_passages_of_one_length_stay_as_they_were_drawn() -> None:
    assert list(group_by_length([56] * 20, 8)) == [
        list(range(7)),
        list(range(7, 14)),
        list(range(14, 20)),
    ]
    assert list(group_by_length([56] * 24, 8)) == [list(range(i, i + 8)) for i in (0, 8, 16)]


@pytest.fixture
def uneven_recipe(tiny_recipe: Path, sentences: list[str], tmp_path: Path) -> list[str]:
    """Overrides of the tiny recipe: stage 1 alone, on texts of very different lengths."""
    generator = random.Random(0)
    words = " ".join(sentences).split()
    texts = [" ".join(generator.choices(words, k=generator.randint(8, 60))) for _ in range(60)]
    (tmp_path / "uneven.txt").write_text("\n".join(texts) + "\n")
    return [
        f"pretext.data.0.source={tmp_path / 'uneven.txt'}",
        "pretext.passages.max_tokens=200",
        "pretext.split={low: 5, high: 8, continuation: 3}",
        "pretext.steps=12",
        "pretext.lora.dropout=0.0",
    ]


def train_stage_1(tiny_recipe: Path, overrides: list[str], out: Path) -> None:
    run = recipe.load_recipe(tiny_recipe, overrides)
    pipeline.train(run.model_copy(update={"stages": run.stages[:1]}), out)


def record(monkeypatch: pytest.MonkeyPatch, kind: type[Objective]) -> list[tuple[Batch, float]]:
    """Record the batches on which an objective is trained, and their losses."""
    recorded: list[tuple[Batch, float]] = []
    original = kind.loss

    def loss(self: Objective, compressor: Compressor, batch: Batch) -> torch.Tensor:
        value = original(self, compressor, batch)
        if torch.is_grad_enabled():
            recorded.append((batch, value.item()))
        return value

    monkeypatch.setattr(kind, "loss", loss)
    return recorded


@pytest.mark.parametrize("kind", [Reconstruction, MaskedNextTokenPrediction])
def test_an_objective_of_whole_passages_cuts_none(
    kind: type[Objective],
    uneven_recipe: list[str],
    tiny_recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (name,) = (name for name, known in OBJECTIVES.items() if known is kind)
    recorded = record(monkeypatch, kind)
    overrides = [f"pretext.objective={name}", "pretext.attention=bidirectional"]
    train_stage_1(tiny_recipe, [*uneven_recipe, *overrides], tmp_path / "run")
    (first, *_) = (json.loads(line) for line in (tmp_path / "run" / "run.jsonl").open())
    read = sum(int(batch.text_mask.sum()) for batch, _ in recorded)
    assert read == first["tokens"]
    assert read > 20 * first["passages"], "a text before the split has 8 tokens at most"


def test_reconstruction_of_the_prefix_compresses_the_text_before_the_split(
    uneven_recipe: list[str], tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = record(monkeypatch, PrefixReconstruction)
    overrides = [*uneven_recipe, "pretext.objective=prefix_reconstruction"]
    train_stage_1(tiny_recipe, overrides, tmp_path / "run")
    lengths = {int(n) for batch, _ in recorded for n in batch.text_mask.sum(1)}
    assert lengths == {5, 6, 7, 8}


@pytest.mark.parametrize("lengths", ["different", "equal"])
def test_the_loss_in_the_log_is_the_mean_over_passages(
    lengths: str,
    uneven_recipe: list[str],
    tiny_recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded = record(monkeypatch, Continuation)
    crop = ["pretext.passages={min_chars: 1, max_tokens: 12, crop: true}"]
    overrides = [
        *uneven_recipe,
        *(crop if lengths == "equal" else []),
        "pretext.objective=continuation",
        "pretext.log_steps=6",
    ]
    train_stage_1(tiny_recipe, overrides, tmp_path / "run")
    events = [json.loads(line) for line in (tmp_path / "run" / "run.jsonl").open()]
    logged = [event["loss"] for event in events if "loss" in event]
    sizes = [len(batch.input_ids) for batch, _ in recorded]
    assert (len(set(sizes)) == 1) == (lengths == "equal")
    for window, found in enumerate(logged):
        steps = slice(6 * window, 6 * window + 6)
        rows, losses = sizes[steps], [loss for _, loss in recorded[steps]]
        total = sum(size * loss for size, loss in zip(rows, losses, strict=True))
        assert found == pytest.approx(total / sum(rows), rel=1e-5)


def test_mean_cosine_equals_the_pairwise_mean() -> None:
    vectors = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    pairs = [[i, j] for i in range(5) for j in range(5) if i != j]
    expected = torch.stack([(unit[:, i] * unit[:, j]).sum(-1) for i, j in pairs]).mean(0)
    torch.testing.assert_close(held_out.mean_cosine(vectors), expected)


def test_a_flat_gap_is_warned_of_once(
    tiny_recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = ["pretext.learning_rate=1e-9", "pretext.memory_learning_rate=1e-9"]
    run = recipe.load_recipe(tiny_recipe, [*settings, "pretext.eval_steps=5"])
    only_pretext = run.model_copy(update={"stages": run.stages[:1]})
    with caplog.at_level(logging.WARNING, logger="llm2comp"):
        pipeline.train(only_pretext, tmp_path / "run")
    warnings = [r for r in caplog.records if "has not ignited" in r.getMessage()]
    assert len(warnings) == 1


def test_a_schedule_opens_the_attention(tiny_recipe: Path, tmp_path: Path) -> None:
    run = recipe.load_recipe(tiny_recipe, ["pretext.bidirectional_from_step=10"])
    only_pretext = run.model_copy(update={"stages": run.stages[:1]})
    model = pipeline.train(only_pretext, tmp_path / "run")
    config = json.loads((model / "config.json").read_text())
    assert config["is_causal"] is False
    assert config["use_bidirectional_attention"] is True


def test_start_from_continues_where_the_other_run_ended(tiny_recipe: Path, tmp_path: Path) -> None:
    run = recipe.load_recipe(tiny_recipe)
    first = run.model_copy(update={"stages": run.stages[:1]})
    trained = pipeline.train(first, tmp_path / "first")
    again = recipe.load_recipe(tiny_recipe, [f"pretext.start_from={trained}"])
    pipeline.train(again.model_copy(update={"stages": again.stages[:1]}), tmp_path / "second")
    losses = [
        [
            event["held_out"]["matched"]
            for event in map(json.loads, log.open())
            if "held_out" in event
        ]
        for log in (tmp_path / "first" / "run.jsonl", tmp_path / "second" / "run.jsonl")
    ]
    assert losses[1][0] == pytest.approx(losses[0][-1], abs=1e-3)
    assert losses[0][0] - losses[0][-1] > 0.01
    other = recipe.load_recipe(tiny_recipe, [f"pretext.start_from={trained}", "pretext.lora.r=8"])
    with pytest.raises(UserError, match="does not fit"):
        pipeline.train(other, tmp_path / "third")
    weights = trained / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="start_from .* does not fit"):
        pipeline.train(again.model_copy(update={"stages": again.stages[:1]}), tmp_path / "fourth")


def test_unknown_objective_and_too_few_passages_are_errors_of_one_line(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="objective 'guess' is not one of"):
        pipeline.train(recipe.load_recipe(tiny_recipe, ["pretext.objective=guess"]), tmp_path / "a")
    with pytest.raises(UserError, match="too few for batches"):
        pipeline.train(
            recipe.load_recipe(tiny_recipe, ["pretext.eval_passages=199"]), tmp_path / "b"
        )


def test_passages_longer_than_the_positions_of_the_model_fail_before_the_training(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    overrides = ["pretext.passages.max_tokens=2045"]  # 2,048 positions, BOS and 4 memory tokens
    with pytest.raises(UserError, match=r"set pretext\.passages\.max_tokens=2043 or less"):
        pipeline.train(recipe.load_recipe(tiny_recipe, overrides), tmp_path / "run")
    assert not (tmp_path / "run" / "1-pretext").exists()
