"""FSDP and DeepSpeed divide a model among two processes, and it trains as a whole one does."""

import copy
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
import yaml
from distributed_runs import STAGES, assert_equal, losses, said, same, start
from safetensors.torch import load_file

pytestmark = pytest.mark.exhaustive


@pytest.fixture(scope="module")
def whole(recipe: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A run of one process, whose recipe can be divided too."""
    content = copy.deepcopy(recipe)
    content["stages"][-1]["mini_batch_size"] = 32
    return content


@pytest.fixture(scope="module")
def one(whole: dict[str, Any], folder: Path) -> Path:
    """The run of one process."""
    return _in_one_process(whole, folder / "one")


@pytest.fixture(scope="module")
def in_bfloat16(whole: dict[str, Any], folder: Path) -> Path:
    """The run of one process in bfloat16, with gradient checkpointing."""
    content = copy.deepcopy(whole)
    content["backbone"]["dtype"] = "bfloat16"
    for stage in content["stages"]:
        stage["gradient_checkpointing"] = True
    return _in_one_process(content, folder / "bfloat16")


def _in_one_process(content: dict[str, Any], out: Path) -> Path:
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(content))
    run = {"recipe": str(path), "out": str(out), "said": str(out), "processes": 1}
    assert start([run], out.parent) == [[0]], said(out.parent, out.name)
    return out


@pytest.fixture(params=[{"fsdp": True}, {"zero": 1}, {"zero": 2}, {"zero": 3}], ids=str)
def divider(request: pytest.FixtureRequest) -> dict[str, int]:
    if "zero" in request.param:
        pytest.importorskip("deepspeed")
    parameter: dict[str, int] = request.param
    return parameter


def test_a_divided_model_trains_as_a_whole_one_does(
    whole: dict[str, Any], one: Path, folder: Path, divider: dict[str, int]
) -> None:
    """The run is stopped in stage 1 and continued. Gradient checkpointing changes nothing.

    A run that is not divided does not continue it, for it would not find the optimiser's state.
    """
    divided = copy.deepcopy(whole)
    for stage in divided["stages"]:
        stage["gradient_checkpointing"] = True
    path, out = folder / "divided.yaml", folder / f"divided by {divider}"
    path.write_text(yaml.safe_dump(divided))
    run = {"recipe": str(path), "out": str(out), "said": str(out), "processes": 2}
    stopped = run | divider | {"fault": "SIGTERM", "fault_at": [1, "pretext", 3]}
    undivided = run | {"said": f"{out}, undivided"}
    ended = start([stopped, undivided, run | divider], folder)
    assert ended == [[143, 143], [2, 2], [0, 0]], said(folder, out.name)
    assert "this run trains without FSDP and DeepSpeed" in said(folder, f"{out.name}, undivided")
    assert_equal(out, one)


def test_what_few_recipes_have_can_be_divided_too(
    whole: dict[str, Any], one: Path, folder: Path, divider: dict[str, int]
) -> None:
    """All weights of stage 3, which mines its negatives; and a run that diverges."""
    base = {"base": str(one / STAGES[1])}
    tuned = {key: whole[key] for key in ("name", "evaluation")} | base
    last = whole["stages"][-1]
    mined = {"data": last["data"][-1:], "steps": 6, "mining": {"negatives": 2, "every": 3}}
    stages = {
        "all": last | mined | {"lora": None, "memory_learning_rate": None, "learning_rate": 1e-4},
        "diverges": last | {"learning_rate": 1e30},
    }
    runs = []
    for name, stage in stages.items():
        path = folder / f"{name}.yaml"
        content = tuned | {"stages": [stage], "backbone": {"dtype": "float32"}}
        path.write_text(yaml.safe_dump(content))
        for how in ({"processes": 1}, {"processes": 2} | divider):
            out = str(folder / f"{name}, {how}")
            runs.append({"recipe": str(path), "out": out, "said": out} | how)
    ended = start(runs, folder)
    names = [Path(run["out"]).name for run in runs]
    last_words = "".join(said(folder, name) for name in names)
    assert ended == [[0], [0, 0], [2], [2, 2]], last_words
    expected = losses(folder / names[0])
    assert len(expected) == 6
    assert same(losses(folder / names[1]), expected)
    assert "supervised diverged at step 2" in said(folder, names[3])


def test_bfloat16_trains_as_in_one_process(
    in_bfloat16: Path, folder: Path, divider: dict[str, int]
) -> None:
    """The backbone is in bfloat16, what trains is in float32. The run is stopped and continued.

    The first loss shows that it computes in the same precisions. Later ones differ by rounding.
    """
    out = folder / f"bfloat16 divided by {divider}"
    recipe = str(in_bfloat16.with_suffix(".yaml"))
    run = {"recipe": recipe, "out": str(out), "said": str(out), "processes": 2} | divider
    stopped = run | {"fault": "SIGTERM", "fault_at": [1, "pretext", 3]}
    assert start([stopped, run], folder) == [[143, 143], [0, 0]], said(folder, out.name)
    found, expected = losses(out), losses(in_bfloat16)
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    assert found[0][2] == pytest.approx(expected[0][2], rel=1e-5)
    for folder_name in STAGES:
        stage = folder_name.partition("-")[2]
        of_two, of_one = ([row[2] for row in rows if row[0] == stage] for rows in (found, expected))
        assert fmean(of_two) == pytest.approx(fmean(of_one), rel=0.02)
        assert of_two == pytest.approx(of_one, rel=0.05)
        adapter = load_file(out / folder_name / "adapter" / "adapter_model.safetensors")
        assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}
