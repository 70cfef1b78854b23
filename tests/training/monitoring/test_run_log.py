"""The log of a run: its file, and the numbers that go to TensorBoard."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from llm2comp.training.monitoring import run_log
from llm2comp.training.monitoring.run_log import RunLog

EVENTS = [
    {"stage": "pretext", "passages": 100},
    {"stage": "pretext", "step": 10, "loss": 1.5, "learning_rate": 1e-3},
    {"stage": "pretext", "step": 20, "held_out": {"matched": 1.25, "gap": 0.5}},
]


def written(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "run.jsonl", Console(file=io.StringIO()))
    for event in EVENTS:
        log.write(**event)


def test_events_are_in_the_file_and_their_numbers_in_tensorboard(tmp_path: Path) -> None:
    written(tmp_path)
    assert [json.loads(line) for line in (tmp_path / "run.jsonl").open()] == EVENTS
    board = EventAccumulator(str(tmp_path / run_log.BOARD))
    board.Reload()
    found = {
        tag: [(e.step, e.value) for e in board.Scalars(tag)] for tag in board.Tags()["scalars"]
    }
    assert found == {
        "pretext/loss": [(10, 1.5)],
        "pretext/learning_rate": [(10, pytest.approx(1e-3))],
        "pretext/held_out_matched": [(20, 1.25)],
        "pretext/held_out_gap": [(20, 0.5)],
    }


def test_without_tensorboard_only_the_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_log, "find_spec", lambda _: None)
    written(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run.jsonl"]
