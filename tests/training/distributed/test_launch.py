"""What several processes or GPUs cannot do is one line, before anything is written."""

from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file

from llm2comp import api
from llm2comp.errors import UserError
from llm2comp.recipe import Recipe, load_recipe
from llm2comp.training import pipeline
from llm2comp.training.distributed import launch, sharded, world

CONFIGS = Path(__file__).parents[3] / "recipes" / "accelerate"


def loaded(tiny_recipe: Path, *overrides: str) -> Recipe:
    return load_recipe(tiny_recipe, list(overrides))


def test_several_gpus_without_a_launcher_are_one_line(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the Trainer would wrap the model in DataParallel, and train something else."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(UserError, match=r"accelerate launch --multi_gpu --num_processes 4 -m"):
        pipeline.train(loaded(tiny_recipe), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("processes", "line"),
    [
        (3, r"pretext\.batch_size=4 cannot be divided among 3 processes; set 3 or 6"),
        (8, r"pretext\.batch_size=4 cannot be divided among 8 processes; set 8"),
    ],
)
def test_a_batch_that_cannot_be_divided_is_refused(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, processes: int, line: str
) -> None:
    monkeypatch.setattr(world, "size", lambda: processes)
    with pytest.raises(UserError, match=line):
        launch.require_possible(loaded(tiny_recipe), planned=False)


def test_processes_do_not_plan(tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch.require_possible(loaded(tiny_recipe), planned=True)
    monkeypatch.setattr(world, "size", lambda: 2)
    launch.require_possible(loaded(tiny_recipe), planned=False)
    with pytest.raises(UserError, match="use one process"):
        launch.require_possible(loaded(tiny_recipe), planned=True)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["pretext.compile=true"], r"pretext\.compile"),
        (["unsupervised.mini_batch_tokens=100"], r"unsupervised\.mini_batch_tokens"),
        (["supervised.mini_batch_size=3"], r"set supervised\.mini_batch_size=4"),
        (["supervised.guide=minilm"], r"supervised\.guide"),
        (["supervised.data.0.negatives=7"], r"set supervised\.mini_batch_size=28"),
        (["supervised.mining.negatives=2"], r"set supervised\.mini_batch_size=8"),
        (["evaluation.during.tasks=[STSBenchmarkDev]", "evaluation.during.every=2"], r"during"),
    ],
)
def test_what_fsdp_cannot_do_is_refused(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], line: str
) -> None:
    monkeypatch.setattr(world, "size", lambda: 2)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert sharded.is_fsdp()
    launch.require_possible(loaded(tiny_recipe), planned=False)
    with pytest.raises(UserError, match=line):
        launch.require_possible(loaded(tiny_recipe, *overrides), planned=False)


def test_a_study_is_for_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="a study runs in one process"):
        api.study("pretext", tmp_path / "study", quick=True)
    assert not (tmp_path / "study").exists()


def test_deepspeed_is_refused(tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match="FSDP"):
        launch.require_possible(loaded(tiny_recipe), planned=False)


@pytest.mark.parametrize(
    ("name", "processes", "machines"),
    [("1-gpu", 1, 1), ("8-gpus", 8, 1), ("2x8-gpus", 16, 2), ("fsdp", 8, 1)],
)
def test_shipped_configurations_are_read_by_accelerate(
    name: str, processes: int, machines: int
) -> None:
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert (config.num_processes, config.num_machines) == (processes, machines)
    assert config.mixed_precision == "no"  # the recipe decides
    assert (config.distributed_type == "FSDP") == (name == "fsdp")
