"""What several processes or GPUs cannot do is one line, before anything is written."""

import importlib.util
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env

from llm2comp import api
from llm2comp.errors import UserError
from llm2comp.recipe import Recipe, load_recipe
from llm2comp.training import pipeline
from llm2comp.training.distributed import launch, sharded, world, zero

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
        (["supervised.matryoshka_tokens=[4, 1]"], r"set supervised\.mini_batch_size=8"),
        (["supervised.mining.negatives=2"], r"set supervised\.mini_batch_size=8"),
        (["evaluation.during.tasks=[STSBenchmarkDev]", "evaluation.during.every=2"], r"during"),
    ],
)
@pytest.mark.parametrize("divider", ["FSDP", "DeepSpeed"])
def test_what_a_divided_model_cannot_do_is_refused(
    tiny_recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    overrides: list[str],
    line: str,
    divider: str,
) -> None:
    monkeypatch.setattr(world, "size", lambda: 2)
    monkeypatch.setenv(f"ACCELERATE_USE_{divider.upper()}", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert sharded.is_divided()
    assert sharded.divider() == divider
    launch.require_possible(loaded(tiny_recipe), planned=False)
    with pytest.raises(UserError, match=line):
        launch.require_possible(loaded(tiny_recipe, *overrides), planned=False)


@pytest.mark.parametrize("version", ["", "1"], ids=["default", "1"])
def test_the_first_version_of_fsdp_is_refused(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setattr(world, "size", lambda: 2)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.delenv("FSDP_VERSION", raising=False)
    if version:
        monkeypatch.setenv("FSDP_VERSION", version)
    with pytest.raises(UserError, match="set fsdp_version: 2"):
        launch.require_possible(loaded(tiny_recipe), planned=False)


def test_a_study_is_for_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="a study runs in one process"):
        api.study("pretext", tmp_path / "study", quick=True)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("processes", "installed", "setting", "line"),
    [
        (2, False, {}, r"pip install 'llm2comp\[deepspeed\]'"),
        (1, True, {}, "there is one; leave it out"),
        (2, True, {"DEEPSPEED_ZERO_STAGE": "0"}, "zero_stage=0 .* set zero_stage: 1 or 2 or 3"),
        (2, True, {"DEEPSPEED_CONFIG_FILE": "my.json"}, "deepspeed_config_file=my.json"),
        (2, True, {"DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, "offload_optimizer_device=cpu"),
        (2, True, {"GRADIENT_ACCUMULATION_STEPS": "4"}, "gradient_accumulation_steps=4"),
        (2, True, {"GRADIENT_CLIPPING": "1.0"}, "gradient_clipping=1.0"),
    ],
)
def test_what_deepspeed_is_not_tested_with_is_refused(
    tiny_recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    processes: int,
    installed: bool,
    setting: dict[str, str],
    line: str,
) -> None:
    monkeypatch.setattr(world, "size", lambda: processes)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if installed else None)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    for name, value in setting.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    with pytest.raises(UserError, match=line):
        launch.require_possible(loaded(tiny_recipe), planned=False)


@pytest.mark.parametrize("stage", [2, 3])
def test_shipped_configurations_of_deepspeed_are_possible(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    """In the environment that accelerate's launcher makes of them."""
    command = ["--config_file", str(CONFIGS / f"zero{stage}.yaml"), "-m", "llm2comp"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    args.deepspeed_fields_from_accelerate_config = ""
    _, environment = prepare_deepspeed_cmd_env(args)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(world, "size", lambda: 2)
    launch.require_possible(loaded(tiny_recipe), planned=False)
    assert zero.is_zero()
    assert zero.divides_weights() == (stage == 3)


@pytest.mark.parametrize(
    ("name", "processes", "machines", "divider"),
    [
        ("1-gpu", 1, 1, ""),
        ("8-gpus", 8, 1, ""),
        ("2x8-gpus", 16, 2, ""),
        ("fsdp", 8, 1, "FSDP"),
        ("zero2", 8, 1, "DEEPSPEED"),
        ("zero3", 8, 1, "DEEPSPEED"),
    ],
)
def test_shipped_configurations_are_read_by_accelerate(
    name: str, processes: int, machines: int, divider: str
) -> None:
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert (config.num_processes, config.num_machines) == (processes, machines)
    assert config.mixed_precision == "no"  # the recipe decides
    assert not divider or config.distributed_type == divider


def test_a_checkpoint_is_continued_as_it_was_divided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the Trainer would begin with a new state of the optimiser, and not say so."""
    optimiser = (
        "zero_pp_rank_0_mp_rank_00_optim_states.pt",
        "zero_pp_rank_1_mp_rank_00_optim_states.pt",
    )
    written = {
        "without FSDP and DeepSpeed": ["optimizer.pt"],
        "with FSDP": ["optimizer.bin"],
        "with ZeRO-1 or -2 and 2 processes": [
            f"global_step4/{name}" for name in (*optimiser, "mp_rank_00_model_states.pt")
        ],
        "with ZeRO-3 and 2 processes": [
            f"global_step4/{name}"
            for name in (*optimiser, "zero_pp_rank_0_mp_rank_00_model_states.pt")
        ],
    }
    environments = {
        (1, ""): "without FSDP and DeepSpeed",
        (2, ""): "without FSDP and DeepSpeed",
        (2, "FSDP"): "with FSDP",
        (2, "1"): "with ZeRO-1 or -2 and 2 processes",
        (2, "2"): "with ZeRO-1 or -2 and 2 processes",
        (4, "2"): "",
        (2, "3"): "with ZeRO-3 and 2 processes",
    }
    for how, files in written.items():
        for file in files:
            (tmp_path / how / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / how / file).touch()
    for (processes, divider), possible in environments.items():
        monkeypatch.setattr(world, "size", lambda processes=processes: processes)
        monkeypatch.setenv("ACCELERATE_USE_FSDP", str(divider == "FSDP"))
        monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", str(divider.isdigit()))
        monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", divider)
        for how in written:
            if how == possible:
                sharded.require_same_division(tmp_path / how)
                continue
            with pytest.raises(UserError, match=f"was written {how}, and this run trains with"):
                sharded.require_same_division(tmp_path / how)
