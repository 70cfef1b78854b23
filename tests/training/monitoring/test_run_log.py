"""The log of a run: its file, and the numbers that go to TensorBoard."""

import io
import json
import resource
import signal
from pathlib import Path

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from llm2comp.errors import UserError
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
    board = EventAccumulator(str(tmp_path / run_log.BOARD / "pretext"))
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


def scalars(tmp_path: Path) -> list[tuple[int, float]]:
    board = EventAccumulator(str(tmp_path / run_log.BOARD / "pretext"))
    board.Reload()
    return [(e.step, e.value) for e in board.Scalars("pretext/loss")]


def test_a_stage_that_continues_takes_back_what_its_checkpoint_does_not_know(
    tmp_path: Path,
) -> None:
    path, console = tmp_path / "run.jsonl", Console(file=io.StringIO())
    first = RunLog(path, console)
    first.start_stage("pretext", None)
    for step in (1, 2):
        first.write(stage="pretext", step=step, loss=float(step))
    mark = first.mark()
    first.write(stage="pretext", step=3, loss=30.0)
    second = RunLog(path, console)
    second.start_stage("pretext", mark, 2)
    second.write(stage="pretext", step=3, loss=3.0)
    second.finish_stage()
    second.check()
    events = [json.loads(line) for line in path.open()]
    assert [e["loss"] for e in events if "loss" in e] == [1.0, 2.0, 3.0]
    assert scalars(tmp_path) == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_a_changed_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    log = RunLog(path, Console(file=io.StringIO()))
    log.start_stage("pretext", None)
    log.write(stage="pretext", step=1, loss=1.5)
    mark = log.mark()
    log.finish_stage()
    path.write_text(path.read_text().replace("1.5", "1.6"))
    with pytest.raises(UserError, match=r"run.jsonl:2: the log of pretext"):
        log.check()
    with pytest.raises(UserError, match=r"run.jsonl is damaged"):
        log.start_stage("pretext", mark, 1)


def test_what_a_full_disk_or_a_power_cut_leaves_of_a_line_is_removed(tmp_path: Path) -> None:
    written(tmp_path)
    path = tmp_path / "run.jsonl"
    whole, log = path.read_bytes(), RunLog(path, Console(file=io.StringIO()))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 5, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            log.write(stage="pretext", passages=100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == whole
    path.write_bytes(whole + b'{"stage": "pre')
    log.check()
    assert path.read_bytes() == whole


def test_the_start_of_a_stage_is_logged_once(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "run.jsonl", Console(file=io.StringIO()))
    for _ in range(2):
        log.write_once(stage="pretext", passages=100)
    assert len((tmp_path / "run.jsonl").read_text().splitlines()) == 1
