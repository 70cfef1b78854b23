"""Two and four processes train as one does, and a process that fails loses nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from distributed_runs import STAGES, assert_equal, losses, said, same, start

MISTAKES = {
    "an unknown key": ({"no_such_key": 1}, "no_such_key"),
    "no such file": ({"data": [{"source": "no-such-file.jsonl"}]}, "no-such-file.jsonl"),
    "divergence": ({"learning_rate": 1e30}, "supervised diverged at step 2"),
}
"""Changes of stage 3, and a part of the line that the run ends with."""
FAULTS = {
    "killed": ("SIGKILL", 1, 5),
    "killed in a checkpoint": ("in a checkpoint", 0, 4),
    "terminated": ("SIGTERM", 1, 5),
    "disk full": ("error", 1, 5),
    "flipped": ("SIGTERM", 0, 5),
    "cut": ("SIGTERM", 1, 5),
}
"""The fault, the process that has it, and the step of stage 3 after which it has it."""
DAMAGED = {"flipped": ("optimizer.pt", "flip"), "cut": ("trainable.safetensors", "cut")}
"""What is done to the last checkpoint before the run is continued."""


@pytest.fixture(scope="module")
def statuses(recipe: dict[str, Any], folder: Path) -> dict[str, list[int]]:
    """All runs of this module, by name: the exit statuses of their processes."""
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    runs: dict[str, dict[str, Any]] = {
        f"of {number}": {"recipe": "recipe.yaml", "processes": number} for number in (1, 2, 4)
    }
    alone = {"recipe": "recipe.yaml", "processes": 1}
    runs["alone"] = alone | {"fault": "SIGTERM", "fault_at": [0, "unsupervised", 3]}
    runs["alone, continued"] = dict(alone)
    tuned = recipe | {"stages": recipe["stages"][-1:], "base": str(folder / "of 1" / STAGES[1])}
    tuned["backbone"] = {"dtype": "float32"}
    del tuned["memory"]
    tuned["stages"] = [tuned["stages"][0] | {"lora": {"r": 4, "dropout": 0.2}}]
    (folder / "tuned.yaml").write_text(yaml.safe_dump(tuned))
    two = {"recipe": "tuned.yaml", "processes": 2}
    runs["undisturbed"] = dict(two)
    for name, (fault, *at) in FAULTS.items():
        runs[name] = two | {"fault": fault, "fault_at": [at[0], "supervised", at[1]]}
        damaged = {"damaged": DAMAGED[name]} if name in DAMAGED else {}
        runs[f"{name}, continued"] = two | damaged
    for name, (changes, _) in MISTAKES.items():
        wrong = tuned | {"stages": [tuned["stages"][0] | changes]}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(wrong))
        runs[name] = {"recipe": f"{name}.yaml", "processes": 2}
    for name, run in runs.items():
        run |= {"recipe": str(folder / run["recipe"])}
        run |= {"out": str(folder / name.removesuffix(", continued")), "said": str(folder / name)}
    return dict(zip(runs, start([*runs.values()], folder), strict=True))


@pytest.mark.parametrize("number", [2, 4])
def test_processes_train_as_one_process_does(
    statuses: dict[str, list[int]], folder: Path, number: int
) -> None:
    assert statuses["of 1"] == [0]
    assert statuses[f"of {number}"] == [0] * number, said(folder, f"of {number}")
    assert_equal(folder / f"of {number}", folder / "of 1")


def test_a_run_of_processes_leaves_what_a_run_of_one_leaves(
    statuses: dict[str, list[int]], folder: Path
) -> None:
    """The main process alone writes; each event is in the log once."""

    def files(out: Path) -> set[str]:
        found = {str(f.relative_to(out)) for f in out.rglob("*")}
        return {f for f in found if "tensorboard/" not in f}

    def events(out: Path) -> list[tuple[str, ...]]:
        lines = (out / "run.jsonl").read_text().splitlines()
        return [tuple(json.loads(line)) for line in lines]

    assert files(folder / "of 2") == files(folder / "of 1")
    assert events(folder / "of 2") == events(folder / "of 1")
    assert "Load it with" in (folder / "of 2.0.txt").read_text()
    assert (folder / "of 2.1.txt").read_text() == ""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_that_failed_continues_and_equals_one_that_did_not(
    statuses: dict[str, list[int]], folder: Path, fault: str
) -> None:
    assert statuses["undisturbed"] == [0, 0], said(folder, "undisturbed")
    continued = f"{fault}, continued"
    assert statuses[continued] == [0, 0], said(folder, continued)
    expected, found = folder / "undisturbed", folder / fault
    assert losses(found) == losses(expected)
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert (found / "model" / name).read_bytes() == (expected / "model" / name).read_bytes()
    assert not list(found.glob(".*"))


@pytest.mark.parametrize("fault", DAMAGED)
def test_a_damaged_checkpoint_is_said_once_and_the_one_before_is_used(
    statuses: dict[str, list[int]], folder: Path, fault: str
) -> None:
    assert statuses[fault] == [143, 143], said(folder, fault)
    text = " ".join(said(folder, f"{fault}, continued").split())
    lines = [part for part in text.split("llm2comp: ") if "is not used" in part]
    assert len(lines) == 1, text
    assert "checkpoint-5 is not used: " in lines[0]
    assert f"{DAMAGED[fault][0]} is damaged or was edited" in lines[0]


@pytest.mark.exhaustive
def test_a_full_disk_ends_all_processes_and_the_next_call_goes_on(
    statuses: dict[str, list[int]], folder: Path, tmp_path: Path
) -> None:
    """The disk is full when the second checkpoint is due."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root mounts a small disk")
    try:
        run = {"recipe": str(folder / "tuned.yaml"), "processes": 2}
        run |= {"out": str(disk / "run"), "said": str(folder / "full")}
        full = run | {"fault": "a full disk", "fault_at": [0, "supervised", 7]}
        (ended,) = start([full], folder)
        assert sorted(ended) == [1, 2], said(folder, "full")  # each writes its random state
        text = said(folder, "full")
        lines = [one for one in text.splitlines() if one.startswith("llm2comp: ")]
        assert ["disk full" in one for one in lines] == [True], text
        (filler,) = disk.rglob("filler")
        filler.unlink()
        assert start([run], folder) == [[0, 0]], said(folder, "full")
        assert losses(disk / "run") == losses(folder / "undisturbed")
        for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
            found, expected = (
                out / "model" / name for out in (disk / "run", folder / "undisturbed")
            )
            assert found.read_bytes() == expected.read_bytes()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    ("fault", "status", "line"),
    [
        ("killed", [1, -9], "another process of this run has ended"),
        ("killed in a checkpoint", [-9, 1], "another process of this run has ended"),
        ("terminated", [143, 143], "stopped by SIGTERM"),
        ("disk full", [1, 2], "disk full"),
    ],
)
def test_what_fails_ends_all_processes_with_one_line(
    statuses: dict[str, list[int]], folder: Path, fault: str, status: list[int], line: str
) -> None:
    text = said(folder, fault)
    assert statuses[fault] == status, text
    lines = [one for one in text.splitlines() if one.startswith("llm2comp: ")]
    assert [line in one for one in lines] == [True], text
    assert "Traceback" not in text


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_said_once(statuses: dict[str, list[int]], folder: Path, mistake: str) -> None:
    """It happens before the processes have joined, in the main one alone, or in all of them."""
    text = said(folder, mistake)
    assert statuses[mistake] == [2, 2], text
    lines = [one for one in text.splitlines() if one.startswith("llm2comp: ")]
    assert [MISTAKES[mistake][1] in one for one in lines] == [True], text


def test_sigterm_writes_a_checkpoint_of_the_step_that_is_trained(
    statuses: dict[str, list[int]], folder: Path
) -> None:
    """Checkpoints are due after every fourth step, and the signal came after step 5.

    Each process has a random state of its own, so that no two have the same dropout.
    """
    done = json.loads((folder / "terminated.json").read_text())
    assert done == {"checkpoint-4": 2, "checkpoint-5": 2}


def test_sigterm_does_the_same_to_one_process(statuses: dict[str, list[int]], folder: Path) -> None:
    assert statuses["alone"] == [143], said(folder, "alone")
    assert json.loads((folder / "alone.json").read_text()) == {"checkpoint-3": 1}
    assert statuses["alone, continued"] == [0], said(folder, "alone, continued")
    assert losses(folder / "alone") == losses(folder / "of 1")
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        found, expected = (folder / out / "model" / name for out in ("alone", "of 1"))
        assert found.read_bytes() == expected.read_bytes()


@pytest.mark.exhaustive
def test_another_number_of_processes_continues_a_run(
    statuses: dict[str, list[int]], folder: Path
) -> None:
    out = str(folder / "changing")
    run = {"recipe": str(folder / "recipe.yaml"), "out": out, "said": out}
    runs = [
        run | {"processes": 2, "fault": "SIGTERM", "fault_at": [1, "pretext", 3]},
        run | {"processes": 4, "fault": "SIGTERM", "fault_at": [2, "supervised", 6]},
        run | {"processes": 1},
    ]
    assert start(runs, folder) == [[143] * 2, [143] * 4, [0]], said(folder, "changing")
    assert_equal(folder / "changing", folder / "of 1")


def variants(recipe: dict[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    """Recipes of one stage with what most recipes do not have."""
    pretext, _, supervised = recipe["stages"]
    pairs = supervised["data"][-1]["source"]
    encoder = str(folder / "of 1" / STAGES[0])
    mine = {"mining": {"negatives": 2, "every": 3}}
    teacher = {"data": [{"source": pairs, "teacher": str(folder / "of 1" / STAGES[2])}]}
    masked = {"objective": "mntp", "mask_probability": 1.0, "masking": "all"}
    fixed = {"data": [{"source": pairs}], "steps": 6}
    stages: dict[str, dict[str, Any]] = {
        "mining": supervised | fixed | mine,
        "teacher": supervised | fixed | teacher,
        "guide": supervised | fixed | {"guide": encoder},
        "tokens": supervised | {"mini_batch_tokens": 60},
        "matryoshka": supervised | {"matryoshka": [32, 8]},
        "first tokens": supervised | {"matryoshka_tokens": [2, 1]},
        "all weights": supervised | fixed | {"lora": None, "memory_learning_rate": None},
        "scores": supervised | fixed,
        "masked tokens": pretext | masked | {"attention": "bidirectional"},
        "embedding prediction": pretext | {"objective": "embedding_prediction"},
    }
    recipes = {}
    for name, stage in stages.items():
        content = recipe | {"stages": [stage]}
        if stage["stage"] == "supervised":
            content |= {"base": encoder, "backbone": {"dtype": "float32"}}
            del content["memory"]
        recipes[name] = content
    during = {"data": pairs, "every": 2, "patience": 2}
    recipes["scores"] |= {"evaluation": {"tasks": [], "during": during}}
    return recipes


@pytest.mark.exhaustive
def test_what_few_recipes_have_is_the_same_too(
    statuses: dict[str, list[int]], recipe: dict[str, Any], folder: Path
) -> None:
    runs = []
    recipes = variants(recipe, folder)
    for name, content in recipes.items():
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        for number in (1, 2):
            out = str(folder / f"{name}, {number}")
            runs.append({"recipe": str(path), "out": out, "said": out, "processes": number})
    ended = start(runs, folder)
    for place, name in enumerate(recipes):
        assert ended[2 * place : 2 * place + 2] == [[0], [0, 0]], said(folder, f"{name}, 2")
        one, two = (losses(folder / f"{name}, {number}") for number in (1, 2))
        assert len(one) >= 5
        assert same(two, one), name


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "launcher",
    [
        "torch.distributed.run --nproc_per_node 2 --rdzv-backend c10d --rdzv-endpoint 127.0.0.1:0 "
        "--local-addr 127.0.0.1",
        "accelerate.commands.launch --cpu --num_processes 2 --num_machines 1 --mixed_precision no "
        "--dynamo_backend no --main_process_port 0",
    ],
    ids=["torchrun", "accelerate launch"],
)
def test_real_launchers(
    statuses: dict[str, list[int]], folder: Path, tmp_path: Path, launcher: str
) -> None:
    command = ["llm2comp", "train", folder / "recipe.yaml", "--out", tmp_path]
    subprocess.run(
        [sys.executable, "-m", *launcher.split(), "-m", *command],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        timeout=400,
    )
    assert same(losses(tmp_path), losses(folder / "of 1"))
