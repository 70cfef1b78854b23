"""Runs of `llm2comp train` in several processes, and what they leave."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("processes.py")
STAGES = ("1-pretext", "2-unsupervised", "3-supervised")


def start(runs: list[dict[str, Any]], folder: Path) -> list[list[int]]:
    """Run in processes, and return their exit statuses."""
    spec = folder / "runs.json"
    spec.write_text(json.dumps(runs))
    done = subprocess.run(
        [sys.executable, SCRIPT, spec],
        # Where DeepSpeed is installed, it says that it finds no GPU, unless it is told.
        env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        check=True,
        stdout=subprocess.PIPE,
        timeout=500,
    )
    statuses: list[list[int]] = json.loads(done.stdout)
    return statuses


def said(folder: Path, name: str) -> str:
    return "".join(file.read_text() for file in sorted(folder.glob(f"{name}.?.txt")))


Losses = list[tuple[str, int, float, float]]
"""For each step its stage and number, the loss, and the norm of the gradient."""


def same(found: Losses, expected: Losses) -> bool:
    return found == [
        (stage, step, pytest.approx(loss, abs=1e-5), pytest.approx(norm, rel=1e-4))
        for stage, step, loss, norm in expected
    ]


def losses(out: Path) -> Losses:
    events = map(json.loads, (out / "run.jsonl").read_text().splitlines())
    keys = ("stage", "step", "loss", "grad_norm")
    return [tuple(event[key] for key in keys) for event in events if "loss" in event]


def assert_equal(several: Path, one: Path) -> None:
    """Check that runs have the same losses and weights, but for rounding."""
    expected = losses(one)
    assert len(expected) == 5 + 5 + 12
    assert same(losses(several), expected)
    for stage in STAGES:
        path = Path(stage, "adapter", "adapter_model.safetensors")
        weights, wanted = load_file(several / path), load_file(one / path)
        assert weights.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert (weights[name] - tensor).abs().max() < 1e-5, name
