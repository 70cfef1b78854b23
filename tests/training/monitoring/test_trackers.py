"""Each stage is a run of a tracker, with a name of its own, and ends before the next one begins."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from llm2comp.recipe import load_recipe
from llm2comp.training import pipeline
from llm2comp.training.monitoring import trackers

STAGES = ["pretext", "unsupervised", "supervised"]


def test_each_stage_is_a_run_of_its_own(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    class Tracker(TrainerCallback):
        def on_train_begin(self, args: Any, *_: Any, **__: Any) -> None:
            seen.append(args.run_name)

    def client(name: str) -> Any:
        return SimpleNamespace(finish=lambda: seen.append(f"{name} finishes"))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Tracker)
    monkeypatch.setattr(trackers, "get_available_reporting_integrations", lambda: ["wandb"])
    monkeypatch.setattr(trackers, "import_module", client)
    steps = [f"{stage}.steps=1" for stage in STAGES]
    pipeline.train(load_recipe(tiny_recipe, [*steps, "report_to=[wandb]"]), tmp_path / "run")
    assert seen == [said for stage in STAGES for said in (f"tiny {stage}", "wandb finishes")]
