"""A small study, and records of what is trained and scored."""

from pathlib import Path

import pytest
import yaml

from llm2comp.evaluation import runner
from llm2comp.training import pipeline


@pytest.fixture
def study_file(tiny_recipe: Path, tmp_path: Path) -> Path:
    shared = yaml.safe_load(tiny_recipe.read_text())
    pretext = {**shared["stages"][0], "steps": 6, "save_steps": 3, "eval_steps": 6}
    study = {
        "name": "tiny",
        "recipe": {
            "backbone": shared["backbone"],
            "memory": shared["memory"],
            "stages": [pretext],
            "evaluation": {"tasks": ["STS17"], "baselines": ["last-token"]},
        },
        "settings": {
            "CTKD": ["pretext.objective=distillation"],
            "MNTP": ["pretext.objective=mntp", "pretext.attention=bidirectional"],
        },
        "seeds": [0, 1],
        "tuning": {"key": "pretext.learning_rate", "values": [0.01, 0.001]},
        "quick": {"seeds": [5], "overrides": ["pretext.steps=2"]},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the run folders that were trained, in order."""
    calls: list[str] = []
    train = pipeline.train

    def record(recipe, out, console=None):  # noqa: ANN001, ANN202
        calls.append(out.name)
        return train(recipe, out, console)

    monkeypatch.setattr(pipeline, "train", record)
    return calls


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the models that were scored, and of the tasks, in order."""
    calls: list[str] = []
    run = runner._run

    def record(model, plan, batch_size):  # noqa: ANN001, ANN202
        calls.append(plan.task.metadata.name)
        return run(model, plan, batch_size)

    monkeypatch.setattr(runner, "_run", record)
    return calls
