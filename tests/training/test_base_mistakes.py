"""A base that cannot be trained, has changed, or is contradicted: one line, and nothing trained."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from base_encoders import fine_tuning
from rich.console import Console

from llm2comp.errors import UserError
from llm2comp.model.lineage import Base
from llm2comp.recipe import Recipe
from llm2comp.training import pipeline
from llm2comp.training.trainer import AdapterCheckpoints

PRETEXT = {"stage": "pretext", "data": [{"source": "a.txt"}]} | dict.fromkeys(
    ("steps", "batch_size", "learning_rate"), 1
)


def train(settings: Recipe, out: Path) -> Path:
    return pipeline.train(settings, out, Console(quiet=True))


def test_a_base_that_changed_between_stop_and_resume_is_refused(
    bert: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"
    shutil.copytree(bert, base)
    settings, out = fine_tuning(base, pairs), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(AdapterCheckpoints, "training_step", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(settings, out)
    (base / "README.md").write_text("an edited card is no other encoder")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-5}))
    with pytest.raises(UserError, match=r"the base \S+ has changed since the run began"):
        train(settings, out)


@pytest.mark.parametrize("revision", [None, "a" * 40], ids=["local", "hub"])
def test_a_base_of_the_hub_stays_the_same_when_more_of_it_is_downloaded(
    tmp_path: Path, revision: str | None
) -> None:
    first, later = (
        SimpleNamespace(
            folder=tmp_path,
            lineage=SimpleNamespace(
                bases=[Base(name="me/tiny", revision=revision, fingerprint=fingerprint)]
            ),
        )
        for fingerprint in ("1", "2")
    )
    pipeline._require_same_base(first, tmp_path)  # type: ignore[arg-type]
    with nullcontext() if revision else pytest.raises(UserError, match="has changed since"):
        pipeline._require_same_base(later, tmp_path)  # type: ignore[arg-type]


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["memory.tokens=4"], "memory is that of the base"),
        (["max_length=100"], "max_length is that of the base"),
        (["backbone.name=smollm2-135m"], "backbone.name is that of the base"),
        (["backbone.add_bos=true"], "backbone.add_bos is that of the base"),
        ([f"stages={[PRETEXT]}"], "pretext needs a causal language model"),
        (["evaluation.baselines=[mean]"], "are made of a backbone"),
        (
            ["supervised.lora=null", "supervised.memory_learning_rate=1"],
            "memory_learning_rate needs a lora",
        ),
    ],
)
def test_what_the_base_fixes_is_not_given(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fine_tuning("minilm", Path("pairs.jsonl"), *overrides)


def test_a_recipe_with_a_base_is_written_and_read_again(tmp_path: Path) -> None:
    settings = fine_tuning("minilm", tmp_path / "pairs.jsonl")
    pipeline.write_recipe(settings, tmp_path)
    assert pipeline.read_recipe(tmp_path) == settings


@pytest.mark.parametrize(
    ("base", "overrides", "message"),
    [
        ("./nothing", [], r"base \./nothing: no such folder"),
        ("BERT", ["backbone.revision=main"], "backbone.revision is for hub models"),
        (
            "BERT",
            ["supervised.attention=causal"],
            "supervised.attention: the attention of .* stays as it is",
        ),
        ("BERT", ["supervised.lora.target_modules=[q_proj]"], "'q_proj' is no linear layer"),
        ("EMPTY", [], "base .* cannot be loaded"),
        ("A RUN", [], "is the folder of a run; its encoder is .*/before/model$"),
    ],
)
def test_a_base_that_cannot_be_trained_is_one_line(
    bert: Path, pairs: Path, tmp_path: Path, base: str, overrides: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    before = tmp_path / "before"
    shutil.copytree(bert, before / "model")
    name = {"BERT": bert, "EMPTY": tmp_path / "empty", "A RUN": before}.get(base, base)
    with pytest.raises(UserError, match=message) as error:
        train(fine_tuning(name, pairs, *overrides), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "3-supervised").exists()
