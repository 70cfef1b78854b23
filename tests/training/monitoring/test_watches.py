"""What is measured on held-out pairs while UCL and SCL train, and the warning of a collapse."""

import io
import json
import math
from collections.abc import Sequence
from functools import partial
from itertools import permutations
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from rich.console import Console
from sentence_transformers import SentenceTransformer
from torch.nn.functional import cosine_similarity
from transformers import TrainerControl, TrainerState, TrainingArguments

from llm2comp.data.drawn.rows import drawn_once
from llm2comp.data.pairs import module_name, write_pairs
from llm2comp.evaluation import baselines
from llm2comp.inference.precision import computing_in
from llm2comp.recipe import Supervised
from llm2comp.recipe_parts import DataSource
from llm2comp.training.monitoring.held_out import Directions
from llm2comp.training.monitoring.run_log import RunLog
from llm2comp.training.monitoring.watches import CollapseWatch, prompts_of, scores_of


def watch(
    model: SentenceTransformer,
    pairs: list[tuple[str, str]],
    file: Path,
    dropout: bool = False,
    dtype: torch.dtype = torch.float32,
    prompts: Sequence[tuple[str, str]] = (),
    scores: Sequence[float] | None = None,
) -> CollapseWatch:
    return CollapseWatch(
        model,
        pairs,
        "supervised",
        every=10,
        temperature=0.05,
        dropout=dropout,
        dtype=dtype,
        log=RunLog(file, Console(file=io.StringIO())),
        prompts=prompts,
        scores=scores,
    )


def step(callback: CollapseWatch, number: int, folder: Path) -> None:
    state = TrainerState(global_step=number, max_steps=30)
    callback.on_step_end(TrainingArguments(str(folder)), state, TrainerControl())


def test_directions_of_known_vectors() -> None:
    orthogonal = Directions.of(5 * torch.eye(8)[:4])
    assert orthogonal.rankme == pytest.approx(4)
    assert orthogonal.participation_ratio == pytest.approx(3)
    assert orthogonal.text_cosine == pytest.approx(0)
    alike = Directions.of(torch.ones(4, 8) * torch.tensor([1.0, 2, 3, 4])[:, None])
    assert alike.rankme == pytest.approx(1, abs=1e-3)
    assert alike.text_cosine == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_equals_a_literal_reference(
    tiny_backbone: Path, sentences: list[str], tmp_path: Path, dtype: torch.dtype
) -> None:
    model = baselines.build("mean", tiny_backbone)
    pairs = list(zip(sentences, sentences[::-1], strict=True))
    model.train()
    state = torch.random.get_rng_state()
    step(watch(model, pairs, tmp_path / "log", dtype=dtype), 10, tmp_path)
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), state)
    (event,) = map(json.loads, (tmp_path / "log").open())
    with computing_in(model, dtype):  # only the encoder: the loss is in float32
        anchors, positives = (
            torch.tensor(model.encode(list(side))).float() for side in zip(*pairs, strict=True)
        )
    losses = [
        torch.logsumexp(anchor @ positives.T / 0.05, 0) - anchor @ positive / 0.05
        for anchor, positive in zip(anchors, positives, strict=True)
    ]
    assert event["step"] == 10
    assert event["held_out"]["loss"] == pytest.approx(float(sum(losses)) / 8, abs=1e-3)
    cosines = positives @ positives.T
    expected = (cosines.sum() - 8) / 56
    assert event["held_out"]["text_cosine"] == pytest.approx(float(expected), abs=1e-3)


def test_the_loss_of_scored_pairs_is_that_of_training(
    tiny_backbone: Path, sentences: list[str], tmp_path: Path
) -> None:
    """Not one that takes a pair of score 0 for a positive pair."""
    model = baselines.build("mean", tiny_backbone)
    pairs = list(zip(sentences, sentences[::-1], strict=True))
    scores = [0.0, 1.0, 2.0, 2.0, 3.5, 4.0, 4.0, 5.0]
    step(watch(model, pairs, tmp_path / "log", scores=scores), 10, tmp_path)
    (event,) = map(json.loads, (tmp_path / "log").open())
    anchors, positives = (
        torch.tensor(model.encode(list(side))) for side in zip(*pairs, strict=True)
    )
    cosines = cosine_similarity(anchors, positives).tolist()
    terms = [
        math.exp((cosines[low] - cosines[high]) / 0.05)
        for low, high in permutations(range(8), 2)
        if scores[high] > scores[low]
    ]
    assert event["held_out"]["loss"] == pytest.approx(math.log(1 + sum(terms)), abs=1e-3)
    assert {"text_cosine", "rankme"} <= event["held_out"].keys()


def test_scores_of_held_out_pairs_are_kept(tmp_path: Path) -> None:
    """Those of a stage of scored pairs alone; other rows come before scored ones."""
    for name, more in {"scored": {"score": 2.5}, "plain": {}}.items():
        rows = [{"anchor": f"q{i}", "positive": f"p{i}"} | more for i in range(20)]
        (tmp_path / name).with_suffix(".jsonl").write_text("\n".join(map(json.dumps, rows)))

    def drawn(*names: str) -> Dataset:
        data = [DataSource(source=str(tmp_path / f"{name}.jsonl")) for name in names]
        stage = Supervised(data=data, steps=2, batch_size=4, learning_rate=1, eval_pairs=4)
        write = partial(write_pairs, stage=stage, seed=0, on_bad_row="fail")
        return drawn_once(tmp_path / "-".join(names), stage, 0, "fail", write).held_out

    assert scores_of(drawn("scored")) == [2.5] * 4
    assert scores_of(drawn("plain")) is None
    assert scores_of(drawn("scored", "plain")) is None
    of_an_older_version = drawn("scored").remove_columns("score")
    assert scores_of(of_an_older_version) is None


def test_pairs_are_measured_behind_their_prompts(
    tiny_backbone: Path, sentences: list[str], tmp_path: Path
) -> None:
    model = baselines.build("mean", tiny_backbone)
    pairs = list(zip(sentences, sentences[::-1], strict=True))
    prompts = [("Find: ", ""), ("", "Text: ")] * (len(pairs) // 2)
    behind = [(q + a, d + p) for (a, p), (q, d) in zip(pairs, prompts, strict=True)]
    callback = watch(model, pairs, tmp_path / "log", prompts=prompts)
    for one in (
        callback,
        watch(model, behind, tmp_path / "log"),
        watch(model, pairs, tmp_path / "log"),
    ):
        step(one, 10, tmp_path)
    found, expected, without = (json.loads(line)["held_out"] for line in (tmp_path / "log").open())
    assert found == pytest.approx(expected, abs=1e-3)
    assert found["loss"] != pytest.approx(without["loss"], abs=1e-2)


def test_held_out_pairs_have_the_prompts_of_their_dataset() -> None:
    pairs = {"anchor": ["a", "b"], "positive": ["c", "d"]}
    prompts = {"anchor": "query: ", "positive": "passage: "}
    columns = {module_name("one"): prompts, module_name("scored"): {}}
    held_out = Dataset.from_dict(pairs | {"dataset": ["scored", "one"]})
    assert prompts_of(held_out, columns) == [("", ""), ("query: ", "passage: ")]
    of_an_older_version = Dataset.from_dict(pairs)
    assert prompts_of(of_an_older_version, columns) == [("", "")] * 2


def test_dropout_makes_equal_texts_differ_in_the_same_way_at_each_measurement(
    tiny_backbone: Path, sentences: list[str], tmp_path: Path
) -> None:
    model = SentenceTransformer(
        modules=list(baselines.build("mean", tiny_backbone).children()), device="cpu"
    )
    model[0].model.config.attention_dropout = 0.3
    for layer in model[0].model.layers:
        layer.self_attn.attention_dropout = 0.3
    pairs = [(text, text) for text in sentences]
    for dropout in (False, True, True):
        step(watch(model, pairs, tmp_path / "log", dropout), 10, tmp_path)
    without_dropout, with_dropout, again = (
        json.loads(line)["held_out"] for line in (tmp_path / "log").open()
    )
    assert with_dropout == again
    assert with_dropout["loss"] != without_dropout["loss"]
    assert with_dropout["rankme"] == without_dropout["rankme"]


def test_collapse_is_warned_of_once(
    tiny_backbone: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = baselines.build("mean", tiny_backbone)
    callback = watch(model, [("same text", "same text")] * 4, tmp_path / "log")
    for number in (7, 10, 20, 30):
        step(callback, number, tmp_path)
    events = [json.loads(line) for line in (tmp_path / "log").open()]
    assert [event["step"] for event in events if "held_out" in event] == [10, 20, 30]
    assert [event["step"] for event in events if "warning" in event] == [10]
    (warning,) = [text for text in caplog.messages if "collapsed" in text]
    assert "supervised, step 10" in warning


def test_fewer_than_two_pairs_are_not_measured(tiny_backbone: Path, tmp_path: Path) -> None:
    model = baselines.build("mean", tiny_backbone)
    step(watch(model, [("a", "b")], tmp_path / "log"), 10, tmp_path)
    assert not (tmp_path / "log").exists()
