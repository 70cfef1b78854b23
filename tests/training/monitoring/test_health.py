"""Warnings of a spike and of an adapter without gradient."""

import io
import json
import random
from pathlib import Path

import pytest
from rich.console import Console

from llm2comp.training.monitoring.health import HealthWatch
from llm2comp.training.monitoring.run_log import RunLog


def watch(folder: Path) -> HealthWatch:
    return HealthWatch("supervised", RunLog(folder / "log", Console(file=io.StringIO())))


def warnings(folder: Path) -> list[tuple[int, str]]:
    log = folder / "log"
    events = map(json.loads, log.open()) if log.exists() else ()
    return [(event["step"], event["warning"]) for event in events]


def test_a_spike_is_said_once_when_it_happens(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    health = watch(tmp_path)
    generator = random.Random(0)
    for step in range(1, 101):
        loss = 8.0 if step in (60, 80) else 2 + generator.gauss(0, 0.1)
        health.observe(step, loss, {"LoRA": 1.0, "memory embeddings": 0.5})
    ((step, text),) = warnings(tmp_path)
    assert step == 60
    assert "the loss is 8 and was about 2" in text
    assert "supervised.learning_rate" in text
    assert caplog.messages == [f"supervised, step 60: {text}"]


def test_a_spike_of_the_gradient_alone(tmp_path: Path) -> None:
    health = watch(tmp_path)
    for step in range(1, 51):
        health.observe(step, 2.0, {"LoRA": 30.0 if step == 40 else 2.0 ** (step % 2)})
    ((step, text),) = warnings(tmp_path)
    assert step == 40
    assert "the gradient's norm is 30" in text


@pytest.mark.parametrize("seed", range(5))
def test_noise_and_sources_of_different_losses_are_no_spikes(seed: int, tmp_path: Path) -> None:
    """Losses of 0.5 and, for one batch in ten, 3; gradients from a heavy-tailed distribution."""
    health, generator = watch(tmp_path), random.Random(seed)
    for step in range(1, 2001):
        loss = (3.0 if step % 10 == 0 else 0.5) * generator.uniform(0.8, 1.2)
        health.observe(step, loss, {"LoRA": generator.lognormvariate(0, 0.6)})
    assert warnings(tmp_path) == []


def test_a_loss_near_zero_may_rise_many_times(tmp_path: Path) -> None:
    health = watch(tmp_path)
    for step in range(1, 101):
        health.observe(step, 1e-6 * 10 ** (step // 25), {"LoRA": 1e-6 * 10 ** (step // 25)})
    assert warnings(tmp_path) == []


def test_parts_without_gradient_are_named_once(tmp_path: Path) -> None:
    health = watch(tmp_path)
    for step in range(1, 30):
        health.observe(step, 1.0, {"LoRA": 0.3, "memory embeddings": 0.0})
    ((step, text),) = warnings(tmp_path)
    assert step == 5
    assert "no gradient has reached memory embeddings" in text
    assert "LoRA" not in text.replace("lora.target_modules", "")


def test_single_steps_without_gradient_are_fine(tmp_path: Path) -> None:
    health = watch(tmp_path)
    for step in range(1, 30):
        health.observe(step, 0.0, {"LoRA": float(step % 3 == 0)})
    assert warnings(tmp_path) == []
