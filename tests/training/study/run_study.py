"""Run a study, and read what it keeps."""

from collections.abc import Sequence
from pathlib import Path

import yaml
from rich.console import Console

from llm2comp.evaluation.store import ResultStore, TaskResult
from llm2comp.training.study import results
from llm2comp.training.study.plan import load_study
from llm2comp.training.study.run import StudyRun


def edit(path: Path, **changes: object) -> Path:
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes, sort_keys=False))
    return path


def go(path: Path, out: Path, reuse: Sequence[Path] = ()) -> results.Results:
    return StudyRun(load_study(path), out, Console(quiet=True), reuse).run()


def kept(out: Path) -> list[TaskResult]:
    """What is in the store of a study."""
    return ResultStore(out / "scores").all()
