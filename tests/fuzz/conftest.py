"""An encoder and a run to break, and a cache and a home folder of their own."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cases import COUNTS, SECONDS

from llm2comp import api
from llm2comp.data import downloads
from llm2comp.errors import UserError
from llm2comp.utils import hardware


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no case reach the user's files or a package index."""

    def refuse(*_: object) -> None:
        raise UserError("no downloads in fuzz tests")

    monkeypatch.setenv("LLM2COMP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(downloads, "extract_members", refuse)
    # `auto` would load every model twice.
    monkeypatch.setattr(hardware, "_processor_flags", lambda: frozenset({"avx2"}))


@pytest.fixture(autouse=True)
def _logs_are_text() -> Iterator[None]:
    """Check that every message of our log can be written to a file.

    The fixture `caplog` would see none of them, because a command keeps them from the root logger.
    """
    records: list[logging.LogRecord] = []
    make = logging.getLogRecordFactory()

    def record(*arguments: Any, **more: Any) -> logging.LogRecord:
        made = make(*arguments, **more)
        if made.name.startswith("llm2comp"):
            records.append(made)
        return made

    logging.setLogRecordFactory(record)
    yield
    logging.setLogRecordFactory(make)
    for one in records:
        one.getMessage().encode()


@pytest.fixture(scope="session")
def short_recipe(tiny_recipe: Path) -> str:
    """The recipe of three stages, with one step of four rows each, as YAML."""
    recipe = yaml.safe_load(tiny_recipe.read_text(encoding="utf-8"))
    for stage in recipe["stages"]:
        stage |= {"steps": 1, "batch_size": 4, "eval_steps": 1}
        stage |= {"eval_passages": 2} if stage["stage"] == "pretext" else {"eval_pairs": 2}
    recipe["stages"][0]["split"] = {"low": 5, "high": 10}
    text: str = yaml.safe_dump(recipe, sort_keys=False)
    return text


@pytest.fixture(scope="session")
def finished_run(short_recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the short recipe. Tests must not write to it."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = folder / "recipe.yaml"
    recipe.write_text(short_recipe, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "_processor_flags", lambda: frozenset({"avx2"}))
        api.train(str(recipe), folder / "run")
    shutil.rmtree(folder / "run" / "tensorboard", ignore_errors=True)
    return folder / "run"


@pytest.fixture(scope="session")
def encoder(finished_run: Path) -> Path:
    """The encoder folder of the run. Tests must not write to it."""
    return finished_run / "model"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many cases have run."""
    for subject, count in sorted(COUNTS.items()):
        terminalreporter.write_line(f"fuzz: {count:,} cases of {subject}, {SECONDS[subject]:.1f} s")
