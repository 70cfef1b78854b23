"""Runs read their rows from files: a resumed run needs no source, and says what was skipped."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm2comp import recipe
from llm2comp.errors import UserError
from llm2comp.recipe import STAGE_FOLDERS
from llm2comp.training import pipeline
from llm2comp.training.contrastive import ContrastiveTrainer
from llm2comp.training.trainer import AdapterCheckpoints, PretextTrainer

STEPS = {"pretext": 6, "unsupervised": 6, "supervised": 1}


@pytest.fixture
def own_recipe(tiny_recipe: Path, tmp_path: Path) -> Path:
    """The tiny recipe with files of its own, which a test may remove."""
    folder = tmp_path / "own"
    shutil.copytree(tiny_recipe.parent, folder)
    content = yaml.safe_load(tiny_recipe.read_text())
    for stage in content["stages"]:
        stage["steps"] = STEPS[stage["stage"]]
        for source in stage["data"]:
            source["source"] = str(folder / Path(source["source"]).name)
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def stop_in_step(number: int, kind: type[AdapterCheckpoints], patch: pytest.MonkeyPatch) -> None:
    """Let a trainer stop as by Ctrl-C."""
    step, done = kind.training_step, []

    def stopping(self: Any, *arguments: Any, **options: Any) -> Any:
        done.append(1)
        if len(done) == number:
            raise KeyboardInterrupt
        return step(self, *arguments, **options)

    patch.setattr(kind, "training_step", stopping)


@pytest.mark.parametrize(
    ("trainer", "overrides"),
    [
        (PretextTrainer, []),
        (ContrastiveTrainer, []),
        (
            ContrastiveTrainer,
            # Two spans differ, so nothing else has to.
            [
                "unsupervised.views=crop",
                "unsupervised.lora.dropout=0",
                "unsupervised.attention_dropout=0",
            ],
        ),
    ],
    ids=["passages", "texts", "crops"],
)
def test_a_resumed_run_needs_no_source_and_ends_the_same(
    trainer: type[AdapterCheckpoints],
    overrides: list[str],
    own_recipe: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = recipe.load_recipe(own_recipe, overrides)
    count = 1 if trainer is PretextTrainer else 2
    settings = settings.model_copy(update={"stages": settings.stages[:count]})
    pipeline.train(settings, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        stop_in_step(6, trainer, patch)
        with pytest.raises(KeyboardInterrupt):
            pipeline.train(settings, tmp_path / "stopped")
    for source in own_recipe.parent.glob("*.txt"):
        source.write_text("something else\n")
    caplog.clear()
    pipeline.train(settings, tmp_path / "stopped")
    changed = [line for line in caplog.messages if "has changed since" in line]
    assert len(changed) == 1
    for folder in [STAGE_FOLDERS[stage.stage] for stage in settings.stages]:
        one, other = (
            (tmp_path / out / folder / "model.safetensors").read_bytes()
            for out in ("whole", "stopped")
        )
        assert one == other, folder
    assert not list((tmp_path / "stopped").glob(".*"))


def test_the_file_that_a_later_stage_lacks_is_found_before_the_first_stage(
    own_recipe: Path, tmp_path: Path
) -> None:
    (own_recipe.parent / "scored.jsonl").unlink()
    with pytest.raises(UserError, match=r"scored\.jsonl: cannot be read: No such file"):
        pipeline.train(recipe.load_recipe(own_recipe), tmp_path / "run")
    assert not (tmp_path / "run" / "1-pretext").exists()
    assert not (tmp_path / "run" / ".1-pretext.work" / "rows").exists()


def test_the_log_says_what_was_drawn_and_what_was_skipped(own_recipe: Path, tmp_path: Path) -> None:
    source = own_recipe.parent / "texts.txt"
    with source.open("a") as stream:
        stream.write("\n" * 3)
    run = recipe.load_recipe(own_recipe, ["on_bad_row=skip", "pretext.steps=1"])
    pipeline.train(run.model_copy(update={"stages": run.stages[:1]}), tmp_path / "run")
    events = [json.loads(line) for line in (tmp_path / "run" / "run.jsonl").open()]
    (drawn,) = (event for event in events if "skipped" in event)
    assert drawn["stage"] == "pretext"
    assert drawn["skipped"] == {str(source): 3}
    assert drawn["passages"] == 4
