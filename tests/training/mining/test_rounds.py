"""Mining while stage 3 trains: what is mined, with which weights, and a run that was stopped."""

import json
import math
import sys
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from rich.console import Console
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1]))  # for base_encoders

from base_encoders import fine_tuning

import llm2comp
from llm2comp.data import sources
from llm2comp.data.pairs import dataset_name, module_name
from llm2comp.errors import UserError
from llm2comp.inference.mining.miner import Mined, mine
from llm2comp.recipe import Recipe, Supervised
from llm2comp.recipe_parts import DataSource, Mining
from llm2comp.training import pipeline
from llm2comp.training.contrastive import ContrastiveTrainer
from llm2comp.training.mining import rounds
from llm2comp.training.trainer import WEIGHTS, AdapterCheckpoints

MINING = "supervised.mining={every: 2, negatives: 2, relative_margin: 0}"
"""Three rounds of two steps."""


def train(settings: Recipe, out: Path) -> Path:
    return pipeline.train(settings, out, Console(quiet=True))


def weights(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(folder.rglob("model.safetensors")))


@pytest.fixture(scope="module")
def uninterrupted(bert: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("rounds") / "run"
    return weights(train(fine_tuning(bert, pairs, MINING), out))


def train_until(step: int, settings: Recipe, out: Path) -> None:
    """Stop a run before it does the step after this one."""
    original = AdapterCheckpoints.training_step

    def stop(trainer: AdapterCheckpoints, *args: object) -> torch.Tensor:
        if trainer.state.global_step == step:
            raise KeyboardInterrupt
        return original(trainer, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AdapterCheckpoints, "training_step", stop)
        with pytest.raises(KeyboardInterrupt):
            train(settings, out)


@pytest.mark.parametrize(
    "stopped", [3, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in (1, 2, 4, 5))]
)
def test_a_run_that_was_stopped_gives_the_same_weights(
    bert: Path, pairs: Path, uninterrupted: bytes, tmp_path: Path, stopped: int
) -> None:
    settings, out = fine_tuning(bert, pairs, MINING, "supervised.save_steps=1"), tmp_path / "run"
    train_until(stopped, settings, out)
    assert weights(train(settings, out)) == uninterrupted


def test_scores_while_training_go_on_through_the_rounds(
    bert: Path, pairs: Path, tmp_path: Path
) -> None:
    during = f"evaluation.during={{data: {pairs}, every: 1}}"
    settings = fine_tuning(bert, pairs, MINING, during, "supervised.save_steps=1")
    train_until(3, settings, tmp_path / "stopped")
    folders = [train(settings, tmp_path / name) for name in ("stopped", "whole")]
    assert weights(folders[0]) == weights(folders[1])
    for name in ("stopped", "whole"):
        events = [json.loads(line) for line in (tmp_path / name / "run.jsonl").open()]
        scores = {event["step"]: event["score"] for event in events if "score" in event}
        assert list(scores) == [0, 1, 2, 3, 4, 5, 6]
        (kept,) = [event["kept"] for event in events if "kept" in event]
        assert kept["step"] == max(scores, key=lambda step: (scores[step], -step))


def test_each_round_mines_with_the_encoder_so_far(
    bert: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = tmp_path / "run" / ".3-supervised.work"
    seen: list[int] = []
    found: list[int] = []
    original = rounds.begin_round

    def watched(context: Any, model: Any, data: DatasetDict, prompts: Any, dtype: Any) -> Any:
        rows, end = original(context, model, data, prompts, dtype)
        first = end.step - 2
        seen.append(first)
        if first:
            saved = load_file(workdir / f"checkpoint-{first}" / WEIGHTS)
            now = dict(model.named_parameters())
            assert all(torch.equal(now[name], tensor) for name, tensor in saved.items())
        (name,) = data
        part = data[name]
        given = list(zip(part["anchor"], part["positive"], strict=True))
        expected = mine(model, given, context.stage.mining, prompts=("query: ", "passage: "))
        assert list(rows[name]["negative"]) == [row.negatives for row in expected]
        found.append(sum(len(row.negatives) for row in expected))
        for row in expected:
            assert len({row.positive, row.anchor, *row.negatives}) == 2 + len(row.negatives)
        return rows, end

    monkeypatch.setattr("llm2comp.training.contrastive.begin_round", watched)
    train(fine_tuning(bert, pairs, MINING), tmp_path / "run")
    assert seen == [0, 2, 4]
    assert all(found)
    events = [json.loads(line) for line in (tmp_path / "run" / "run.jsonl").open()]
    mined = [event["mined"] for event in events if "mined" in event]
    assert [event["after_step"] for event in mined] == [0, 2, 4]
    losses = [event["step"] for event in events if "loss" in event]
    assert losses == [2, 4, 6]


def test_a_recipe_mines_what_the_command_mines(
    bert: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"negatives": 1, "relative_margin": 0.01, "dtype": "float32"}
    llm2comp.mine(bert, pairs, tmp_path / "mined.jsonl", **options)
    columns = ("anchor", "positive", "negative")
    source = DataSource(source=str(tmp_path / "mined.jsonl"))
    rows = sources.rows(source, columns, "fail")
    expected = {(row["anchor"], row["positive"], *row["negative"]) for row in rows}
    found: set[tuple[str, ...]] = set()
    original = rounds.begin_round

    def watched(*arguments: Any) -> Any:
        rows, end = original(*arguments)
        (part,) = rows.values()
        triples = zip(part["anchor"], part["positive"], part["negative"], strict=True)
        found.update((anchor, positive, *negative) for anchor, positive, negative in triples)
        return rows, end

    monkeypatch.setattr("llm2comp.training.contrastive.begin_round", watched)
    sizes = ("supervised.steps=8", "supervised.eval_pairs=0")  # so that all pairs are drawn
    once = "supervised.mining={relative_margin: 0.01}"
    train(fine_tuning(bert, pairs, once, *sizes), tmp_path / "run")
    assert len(found) == 60
    assert {row for row in found if len(row) == 3} == expected
    assert expected


def with_negatives(pairs: Path, file: Path, rows: slice = slice(None)) -> Path:
    """Write the pairs, some of them with a negative."""
    content = [json.loads(line) for line in pairs.read_text().splitlines()]
    for row in content[rows]:
        row["negative"] = f"no {row['positive']}"
    file.write_text("\n".join(map(json.dumps, content)) + "\n")
    return file


@pytest.mark.parametrize("kind", ["negatives", "few negatives", "scores", "teacher"])
def test_a_recipe_with_nothing_to_mine_is_refused(
    bert: Path, pairs: Path, tmp_path: Path, kind: str
) -> None:
    source, more = tmp_path / "source.jsonl", ""
    if kind == "scores":
        rows = [json.loads(line) | {"score": 0.5} for line in pairs.read_text().splitlines()]
        source.write_text("\n".join(map(json.dumps, rows)) + "\n")
    elif kind == "teacher":
        source, more = pairs, f", teacher: {bert}"
    else:
        with_negatives(pairs, source, slice(None) if kind == "negatives" else slice(5, 30))
    data = f"supervised.data=[{{source: {source}{more}}}]"
    out = tmp_path / "run"
    with pytest.raises(UserError) as error:
        train(fine_tuning(bert, pairs, MINING, data), out)
    has = {"few negatives": "negatives", "teacher": "a teacher"}.get(kind, kind)
    assert str(error.value).startswith(
        f"supervised.mining: no source can be mined, because {source} has {has};"
    )
    assert not list(out.rglob("mined-*"))


def test_a_source_with_negatives_stays_as_it_is(
    bert: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = with_negatives(pairs, tmp_path / "triples.jsonl")
    given: dict[str, Any] = {}
    original = rounds.begin_round

    def watched(context: Any, model: Any, data: DatasetDict, *others: Any) -> Any:
        rows, end = original(context, model, data, *others)
        given.update({name: (data[name], rows[name]) for name in data})
        return rows, end

    monkeypatch.setattr("llm2comp.training.contrastive.begin_round", watched)
    data = f"supervised.data=[{{source: {pairs}}}, {{source: {other}}}]"
    train(
        fine_tuning(bert, pairs, data, "supervised.mining={relative_margin: 0}"), tmp_path / "run"
    )
    before, after = given[module_name(str(other))]
    assert before.to_dict() == after.to_dict()
    events = [json.loads(line) for line in (tmp_path / "run" / "run.jsonl").open()]
    (mined,) = [event["mined"] for event in events if "mined" in event]
    (drawn,) = [event["pairs"] for event in events if "pairs" in event]
    assert set(mined) == {"after_step", str(pairs)}
    assert mined[str(pairs)]["pairs"] == drawn[str(pairs)]


NAMES = ["train.csv", "train%2Ecsv", "50%.csv", "%25.a", "source:train"]
TAKEN = ["train", "eval", "type", "half", "pop", "T_destination"]
"""Names of folders that are attributes of torch modules."""


@pytest.mark.parametrize("name", [*NAMES, *TAKEN])
def test_a_dataset_has_its_name_again_and_may_name_a_module(name: str) -> None:
    assert list(torch.nn.ModuleDict({module_name(name): torch.nn.Identity()})) == [
        module_name(name)
    ]
    torch.nn.Sequential(OrderedDict({module_name(name): torch.nn.Identity()}))
    assert dataset_name(module_name(name)) == name


@pytest.mark.parametrize("shared", [0, 2, 10])
def test_one_negative_of_many_rows_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, shared: int
) -> None:
    """Such rows cannot share a batch, and the last batches have one row each."""

    def found(
        _: object, given: Iterable[tuple[str, str]], *__: object, **___: object
    ) -> list[Mined]:
        return [
            Mined(anchor, positive, ["hub" if i < shared else f"n{i}"], [0.9, 0.8])
            for i, (anchor, positive) in enumerate(given)
        ]

    monkeypatch.setattr("llm2comp.training.mining.negatives.mine", found)
    rows = {"anchor": [f"q{i}" for i in range(30)], "positive": [f"p{i}" for i in range(30)]}
    data = DatasetDict({module_name("a.jsonl"): Dataset.from_dict(rows)})
    stage = Supervised(
        data=[DataSource(source="a.jsonl")],
        steps=3,
        batch_size=10,
        learning_rate=1,
        mining=Mining(negatives=1),
    )
    log = SimpleNamespace(write_once=lambda **_: None)
    context: Any = SimpleNamespace(stage=stage, workdir=tmp_path, log=log)
    model: Any = SimpleNamespace(forward=None)
    rounds.begin_round(context, model, data, {}, torch.float32)
    assert caplog.messages == [
        "a.jsonl with the negatives mined after step 0: one text is in 10 of 30 rows, and a batch "
        "holds a text once, so at most 23 rows fit into 3 batches of 10; mine at other ranks, or "
        "give more texts to search"
    ] * (shared == 10)


def test_negatives_that_are_missing_are_not_mined_with_other_weights(
    bert: Path, pairs: Path, tmp_path: Path
) -> None:
    settings, out = fine_tuning(bert, pairs, MINING, "supervised.save_steps=1"), tmp_path / "run"
    train_until(3, settings, out)
    folder = out / ".3-supervised.work" / "rows" / "mined-2"
    folder.rename(out / "away")
    with pytest.raises(UserError, match="mined-2 is missing, and supervised has gone on since"):
        train(settings, out)


def test_negatives_that_a_diverged_encoder_mined_are_mined_again(
    bert: Path, pairs: Path, uninterrupted: bytes, tmp_path: Path
) -> None:
    """Step 3 diverges, so the weights after step 2, which mined its negatives, may be bad."""
    settings, out = fine_tuning(bert, pairs, MINING, "supervised.save_steps=1"), tmp_path / "run"
    compute = ContrastiveTrainer.compute_loss

    def broken(trainer: ContrastiveTrainer, *args: Any, **options: Any) -> Any:
        loss = compute(trainer, *args, **options)
        return loss * math.nan if trainer.step == 3 else loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ContrastiveTrainer, "compute_loss", broken)
        with pytest.raises(UserError, match=r"diverged at step 3.* goes on from checkpoint-1"):
            train(settings, out)
    rows = out / ".3-supervised.work" / "rows"
    assert [folder.name for folder in rows.glob("mined-*")] == ["mined-0"]
    assert weights(train(settings, out)) == uninterrupted
