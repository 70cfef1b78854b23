"""The checks of a GPU, run on a processor with tiny shapes; and faults that they must find."""

import dataclasses
import importlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from llm2comp.model.compressor import Compressor
from llm2comp.training.planning.machines import GPUS

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
Check = Any


@pytest.fixture(scope="module")
def check() -> Iterator[Check]:
    """The modules of the benchmark by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        names = [
            "rows",
            "parts",
            "device",
            "workshop",
            "numbers",
            "training",
            "large",
            "encoding",
            "table",
        ]
        modules: dict[str, ModuleType] = {
            name: importlib.import_module(f"gpucheck.{name}") for name in names
        }
        yield SimpleNamespace(main=importlib.import_module("gpu_check"), **modules)


@pytest.fixture(scope="module")
def workshop(check: Check, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A folder with texts and a tiny random backbone, by the name that it has in each run."""
    with chdir(tmp_path_factory.mktemp("workshop")):
        made = check.workshop.Workshop(Path(), check.workshop.TINY)
        assert made.prepare() == "random weights (a stand-in)"
        yield made


def run(check: Check, workshop: Any, name: str) -> dict[str, Any]:
    """Run a part in this process, and return its rows by the name of the check."""
    check.parts.run_part(name, workshop)
    rows = check.rows.read_rows(workshop.folder / f"{name}.rows")
    (workshop.folder / f"{name}.rows").unlink()
    return {row.check: row for row in rows}


@pytest.fixture(scope="module")
def trained(check: Check, workshop: Any) -> dict[str, Any]:
    """The rows of the parts that train, in float32 and in bfloat16."""
    return {name: run(check, workshop, name) for name in ("float32", "bfloat16")}


def test_a_step_agrees_in_all_ways(check: Check, workshop: Any) -> None:
    rows = run(check, workshop, "numbers")
    results = {name: row.result for name, row in rows.items()}
    without = [name for name in results if "flash" in name]
    assert len(results) == 9
    assert all(results.pop(name) == "not run" for name in without)
    assert set(results.values()) == {"pass"}, rows
    half = rows["distillation: bfloat16, sdpa"].numbers
    assert half["loss"] > 0  # it was really computed otherwise
    assert 0.9 < half["cosine"] < 1


def test_a_decoder_that_is_recomputed_with_its_adapter_is_found(
    check: Check, workshop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plain(compressor: Compressor) -> None:
        compressor.body.gradient_checkpointing_enable({"use_reentrant": False})

    monkeypatch.setattr(Compressor, "enable_gradient_checkpointing", plain)
    row = run(check, workshop, "numbers")["distillation: gradient checkpointing"]
    assert row.result == "FAIL"


def test_another_mask_in_bfloat16_is_found(
    check: Check, workshop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = Compressor.encode

    def without_mask(compressor: Compressor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        half = compressor.body.dtype == torch.bfloat16
        return encode(compressor, ids, torch.ones_like(mask) if half else mask)

    monkeypatch.setattr(Compressor, "encode", without_mask)
    rows = run(check, workshop, "numbers")
    assert rows["distillation: bfloat16, sdpa"].result == "FAIL"
    assert rows["distillation: float32, GPU as processor"].result == "pass"


def test_all_stages_train_and_agree(trained: dict[str, Any]) -> None:
    for rows in trained.values():
        assert rows
        assert [row for row in rows.values() if row.result != "pass"] == []
    agree = [row for name, row in trained["bfloat16"].items() if name.startswith("losses are")]
    assert len(agree) == 4
    assert all(0 < row.numbers["mean"] < 0.1 for row in agree)


def test_losses_that_differ_or_rise_or_are_missing_are_found(
    check: Check, workshop: Any, tmp_path: Path
) -> None:
    def write(name: str, losses: list[float]) -> Path:
        (tmp_path / name).mkdir()
        lines = [json.dumps({"stage": "pretext", "step": 1, "loss": loss}) for loss in losses]
        (tmp_path / name / "run.jsonl").write_text("\n".join(lines) + "\n")
        return tmp_path / name

    steps = workshop.sizes.steps
    exact = write("exact", [2 - place / 10 for place in range(steps)])
    slightly = write("slightly", [(2 - place / 10) * 1.03 for place in range(steps)])
    rising = write("rising", [1 + place / 10 for place in range(steps)])
    agree = check.training._agree
    assert agree(exact, exact, "pretext").passed
    assert not agree(slightly, exact, "pretext").passed
    assert not agree(rising, exact, "pretext").passed
    here = check.workshop.Workshop(tmp_path, workshop.sizes)
    (tmp_path / "small.json").write_text('"random"')
    assert check.training._falls(here, "exact", "pretext").passed
    assert not check.training._falls(here, "rising", "pretext").passed
    sizes = dataclasses.replace(workshop.sizes, backbone="of a trained model")
    random = check.workshop.Workshop(tmp_path, sizes)
    assert check.training._falls(random, "rising", "pretext").passed
    assert not check.training._falls(here, write("few", [2.0, 1.0]).name, "pretext").passed
    with pytest.raises(check.rows.NotRunError, match="no step of supervised"):
        check.training.losses(exact, "scored")


@pytest.mark.exhaustive
def test_a_large_backbone_takes_what_was_planned(check: Check, workshop: Any) -> None:
    rows = run(check, workshop, "large")
    assert len(rows) == 9
    for name, row in rows.items():
        assert row.result == ("not run" if "given back" in name else "pass"), row
        if "peak" in name:
            assert 0.8 < row.numbers["ratio"] < 1.6
        if "speed" in name:
            assert row.numbers["samples per second"] > 0
    recipe = check.large.large_recipe(check.workshop.Workshop(workshop.folder, check.workshop.REAL))
    first, second, third = recipe.stages
    assert (first.passages.max_tokens, second.max_length, third.max_length) == (512, 512, 1024)
    assert [stage.gradient_checkpointing for stage in recipe.stages] == [True] * 3
    assert not list(workshop.folder.glob("large/*.safetensors"))


@pytest.mark.exhaustive
def test_a_stage_that_does_not_fit_is_not_begun(
    check: Check, workshop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = check.device.STAND_IN.__class__("small", 1e9 + 1e3, 1e12, 1e12)
    monkeypatch.setattr(check.large, "gpu_here", lambda: gpu)
    rows = run(check, workshop, "large")
    row = rows["pretext: peak memory"]
    assert (row.result, rows["pretext: speed"].result) == ("not run", "not run")
    assert "the plan says" in row.measured


def test_a_check_that_runs_out_of_memory_leaves_the_others(check: Check, tmp_path: Path) -> None:
    record = check.rows.Recorder("part", tmp_path / "rows")

    def fails() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

    def cannot() -> None:
        raise check.rows.NotRunError("no such kernel")

    for name, one in (("a", fails), ("b", cannot), ("c", lambda: check.rows.Found("1 GB"))):
        record.check(name, one)
    rows = check.rows.read_rows(tmp_path / "rows")
    assert [row.result for row in rows] == ["FAIL", "not run", "pass"]
    assert rows[0].measured == "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"


def test_embeddings_are_the_processor_s(
    check: Check, workshop: Any, trained: dict[str, Any]
) -> None:
    rows = run(check, workshop, "encoding")
    assert {row.result for row in rows.values()} == {"pass"}, rows
    assert rows["bfloat16 as float32 on the processor"].numbers["distance"] > 1e-7
    assert all(row.numbers["ratio"] > 0 for name, row in rows.items() if "speed" in name)


def test_other_embeddings_are_found(
    check: Check, workshop: Any, trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = check.encoding.load_in

    def other_pooling(folder: str, dtype: torch.dtype) -> Any:
        model = load(folder, dtype)
        model[1].emb_layer.weight.data[-1] = 0  # without the last memory token
        return model

    monkeypatch.setattr(check.encoding, "load_in", other_pooling)
    found = check.encoding._equal(workshop, torch.float32, check.encoding.SAME)
    assert not found.passed


def test_what_two_runs_trained_is_compared(check: Check, tmp_path: Path) -> None:
    for name, change in (("a", 0.0), ("b", 0.01), ("c", 0.0)):
        (tmp_path / name / "adapter").mkdir(parents=True)
        tensors = {
            "x.lora_A.weight": torch.full((4, 4), 5.0),
            "x.lora_B.weight": torch.full((4, 4), 1.0 + change),
        }
        save_file(tensors, tmp_path / name / "adapter" / "adapter_model.safetensors")
    difference = check.training.trained_difference
    assert difference(tmp_path / "c", tmp_path / "a") == 0
    assert difference(tmp_path / "b", tmp_path / "a") == pytest.approx(0.01)
    assert check.training.RESUMED < 0.01


def test_memory_of_a_gpu_is_measured_from_an_empty_device(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    module = SimpleNamespace(
        synchronize=lambda: calls.append("synchronize"),
        empty_cache=lambda: calls.append("empty"),
        reset_peak_memory_stats=lambda: calls.append("reset"),
        max_memory_allocated=lambda: 5,
        max_memory_reserved=lambda: 7,
        memory_allocated=lambda: 3,
    )
    monkeypatch.setattr(torch, "get_device_module", lambda _: module)
    peak = check.device.peak_of(lambda: calls.append("run"))
    assert calls == ["synchronize", "empty", "reset", "run", "synchronize"]
    assert (peak.allocated, peak.reserved, check.device.allocated()) == (5, 7, 3)


@pytest.mark.parametrize(
    ("name", "memory", "known"),
    [
        ("NVIDIA H100 80GB HBM3", 85.0e9, "H100-80GB"),
        ("NVIDIA A100-SXM4-40GB", 42.4e9, "A100-40GB"),
        ("NVIDIA H200", 150.7e9, "H200-141GB"),
        ("NVIDIA GeForce RTX 4090", 25.3e9, "RTX4090"),
        ("NVIDIA L4", 23.6e9, "L4"),
        ("Tesla V100-SXM2-16GB", 16.9e9, None),
    ],
)
def test_a_card_is_found_in_the_table_of_the_plan(
    check: Check, name: str, memory: float, known: str | None
) -> None:
    assert check.device.known_gpu(name, memory) == (GPUS[known] if known else None)


def test_without_a_gpu_one_line_says_so(
    check: Check, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check.main.main() == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("No GPU is visible")
    assert said.err.count("\n") == 1


def test_a_machine_without_a_gpu_is_told_before_everything_is_imported() -> None:
    code = (
        "import sys, torch, gpu_check; torch.cuda.is_available = lambda: False\n"
        "sys.argv = ['gpu_check.py']; assert gpu_check.main() == 2\n"
        "print([name for name in ('llm2comp', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=BENCHMARKS, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_parts_that_crash_hang_or_come_too_late_are_rows(
    check: Check, workshop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = [sys.executable, "-c"]
    process = check.parts.run_process
    assert process([*python, "pass"], 60) is None
    died = process([*python, "import os, signal; print('CUDA error'); os.abort()"], 60)
    assert died == ("FAIL", f"the process ended with {-signal.SIGABRT}: CUDA error")
    result, why = process([*python, "import time; time.sleep(60)"], 0.5)
    assert result == "not run"
    assert "stopped after 0 s" in why or "stopped after 1 s" in why
    parts = {"late": check.parts.Part(lambda *_: None, "something long", 1000)}
    monkeypatch.setattr(check.parts, "PARTS", parts)
    (row,) = check.parts.run_all(
        BENCHMARKS / "gpu_check.py", workshop, check.parts.time.monotonic() + 10, stand_in=True
    )
    assert row.result == "not run"
    assert "and it may take 1000" in row.measured


def test_parts_see_one_gpu_at_most(check: Check) -> None:
    one_gpu = check.parts.one_gpu
    assert one_gpu({}, stand_in=False)["CUDA_VISIBLE_DEVICES"] == "0"
    several = {"CUDA_VISIBLE_DEVICES": "3,4"}
    assert one_gpu(several, stand_in=False)["CUDA_VISIBLE_DEVICES"] == "3"
    assert one_gpu(several, stand_in=True)["CUDA_VISIBLE_DEVICES"] == ""


def test_the_table_is_written_twice(
    check: Check, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        check.rows.Row("large", "pretext: peak memory", "FAIL", "30 GB, plan 20 GB", "1.25"),
        check.rows.Row("flash", "stages train", "not run", "flash-attn is not installed"),
    ]
    check.table.report(rows, {"card": "H100", "seed": 0}, tmp_path / "gpu_check")
    printed = capsys.readouterr().out
    written = (tmp_path / "gpu_check.md").read_text()
    for text in ("30 GB, plan 20 GB", "1 FAIL, 1 not run", "card: H100"):
        assert text in printed
        assert text in written
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    assert [row["result"] for row in found["rows"]] == ["FAIL", "not run"]


@pytest.mark.exhaustive
def test_the_whole_script_on_a_processor() -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu_check.py"), "--stand-in", "--limit", "900"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "killed and continued: supervised" in done.stdout
    assert "bit for bit the same" in done.stdout
