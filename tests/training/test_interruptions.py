"""Killed at any moment or damaged in any file: the same result, or one line that names the file."""

import gzip
import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_and_kill import run_and_kill

from llm2comp.errors import UserError
from llm2comp.recipe import STAGE_FOLDERS, load_recipe
from llm2comp.training import pipeline, run_folder
from llm2comp.training.checkpoints import last_checkpoint
from llm2comp.training.monitoring import health
from llm2comp.training.monitoring.progress import RunProgress
from llm2comp.utils.checksums import CHECKSUMS

VARIES = ("seconds", "tokens_per_second", "sha256")
"""Keys of events that depend on the clock."""


class StoppedError(Exception):
    """As if the process ended at this step."""


def contents(out: Path) -> dict[str, Any]:
    """Return all that a finished run holds, without what depends on the clock."""
    files = {
        str(file.relative_to(out)): file.read_bytes()
        for file in out.rglob("*")
        if file.is_file() and "tensorboard" not in file.parts
    }
    lines = files.pop("run.jsonl").decode().splitlines()
    events = [{k: v for k, v in json.loads(line).items() if k not in VARIES} for line in lines]
    return files | {"run.jsonl": events}


def differing(found: dict[str, Any], expected: dict[str, Any]) -> set[str]:
    """Return the names of the files that differ."""
    return {n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n)}


@pytest.fixture(scope="module")
def uninterrupted(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    pipeline.train(load_recipe(tiny_recipe), out)
    return out


@pytest.fixture(scope="module")
def stopped(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stopped in stage 2, some steps after its second checkpoint."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, "unsupervised", 11)
        with pytest.raises(StoppedError):
            pipeline.train(load_recipe(tiny_recipe), out)
    return out


def stop_at(patch: pytest.MonkeyPatch, stage: str, step: int) -> None:
    """Let a stage end by an exception after a step."""
    original = RunProgress.on_step_end

    def on_step_end(self: RunProgress, args: Any, state: Any, control: Any, **other: Any) -> None:
        original(self, args, state, control, **other)
        if self.label == stage and state.global_step == step:
            raise StoppedError

    patch.setattr(RunProgress, "on_step_end", on_step_end)


@pytest.mark.parametrize(
    ("kills", "longest"), [(4, 4.0), pytest.param(50, 3.0, marks=pytest.mark.exhaustive)]
)
def test_killed_at_random_moments_equals_uninterrupted(
    tiny_recipe: Path, uninterrupted: Path, tmp_path: Path, kills: int, longest: float
) -> None:
    runs = run_and_kill(tiny_recipe, tmp_path, kills, longest)
    for run in runs:
        assert not list(run.glob(".*")), "hidden files are left"
        assert differing(contents(run), contents(uninterrupted)) == set()


def test_a_stopped_run_warns_where_another_does(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warning counts the measurements, losses and warnings before the stop."""
    monkeypatch.setattr(health, "FEWEST", 9)  # steps; the stop is before them
    for name in ("LOSS_RISE", "GRADIENT_RISE", "DEVIATIONS"):
        monkeypatch.setattr(health, name, 0)
    monkeypatch.setattr(health, "LEAST", -1e9)  # all above the median is a spike
    rates = [f"{stage}.learning_rate=1e-9" for stage in ("pretext", "unsupervised")]
    every = ["pretext.eval_steps=4", "unsupervised.eval_steps=4"]
    recipe = load_recipe(tiny_recipe, [*rates, *every, "pretext.memory_learning_rate=1e-9"])
    recipe = recipe.model_copy(update={"stages": recipe.stages[:2]})
    pipeline.train(recipe, tmp_path / "whole")
    for stage, step in (("pretext", 11), ("unsupervised", 11)):
        with pytest.MonkeyPatch.context() as patch:
            stop_at(patch, stage, step)
            with pytest.raises(StoppedError):
                pipeline.train(recipe, tmp_path / "stopped")
    pipeline.train(recipe, tmp_path / "stopped")
    whole, stopped = (contents(tmp_path / name)["run.jsonl"] for name in ("whole", "stopped"))
    said = " ".join(event["warning"] for event in whole if "warning" in event)
    assert "a spike" in said
    assert "has not ignited" in said
    assert stopped == whole


@pytest.fixture
def streaming(tiny_recipe: Path, tmp_path: Path) -> Path:
    """The tiny recipe on gzip parts, and on a folder of parts with several negatives a row."""
    content = yaml.safe_load(tiny_recipe.read_text())
    texts = Path(content["stages"][0]["data"][0]["source"]).read_text().splitlines()
    for name in ("texts", "mined"):
        (tmp_path / name).mkdir()
    for part in range(4):
        lines = [json.dumps({"text": text}) for text in texts[part::4]]
        with gzip.open(tmp_path / "texts" / f"{part}.jsonl.gz", "wt") as stream:
            stream.write("\n".join(lines))
        rows = [
            {"query": query, "pos": texts[i + 1 : i + 3], "neg": texts[i + 3 : i + 3 + i % 4]}
            for i, query in enumerate(texts[:-8])
            if i % 8 == part
        ]
        lines = map(json.dumps, rows)
        (tmp_path / "mined" / f"{part}.jsonl").write_text("\n".join(lines))
    for stage in content["stages"]:
        stage["data"] = [{"source": str(tmp_path / "texts")}]
        stage["steps"] = 8
    content["stages"][-1]["data"] = [{"source": str(tmp_path / "mined"), "negatives": 2}]
    path = tmp_path / "streaming.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("kills", "longest"), [(2, 3.0), pytest.param(30, 3.0, marks=pytest.mark.exhaustive)]
)
def test_a_run_on_parts_that_is_killed_equals_one_that_is_not(
    streaming: Path, tmp_path: Path, kills: int, longest: float
) -> None:
    pipeline.train(load_recipe(streaming), tmp_path / "whole")
    for run in run_and_kill(streaming, tmp_path / "killed", kills, longest):
        assert differing(contents(run), contents(tmp_path / "whole")) == set()


def test_a_stopped_stage_logs_no_step_twice(
    tiny_recipe: Path, uninterrupted: Path, stopped: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    pipeline.train(load_recipe(tiny_recipe), out)
    assert differing(contents(out), contents(uninterrupted)) == set()


def test_the_seconds_of_a_stage_are_those_of_all_its_sessions(
    tiny_recipe: Path, stopped: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    checkpoint = last_checkpoint(out / ".2-unsupervised.work")
    assert checkpoint is not None
    mark = json.loads((checkpoint / "log.json").read_text())
    (checkpoint / "log.json").write_text(json.dumps(mark | {"seconds": 1000.0}))
    (checkpoint / CHECKSUMS).unlink()
    begin = time.monotonic()
    pipeline.train(load_recipe(tiny_recipe), out)
    most = 1000 + time.monotonic() - begin
    seconds = {e["stage"]: e["seconds"] for e in run_folder.read_events(out) if e.get("done")}
    assert 1000 < seconds["unsupervised"] < most


def flip(file: Path, generator: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    file.write_bytes(content)


def cut(file: Path, generator: random.Random) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def damaged_runs(run: Path) -> list[str]:
    return sorted(
        str(file.relative_to(run))
        for file in run.rglob("*")
        if file.is_file() and file.stat().st_size and "tensorboard" not in file.parts
    )


def resumed_or_refused(
    run: Path, name: str, recipe: Path, expected: dict[str, Any], harm: Callable[..., None]
) -> str:
    """Damage a file of a run, and return whether the run was refused or finished as it should."""
    harm(run / name, random.Random(name))
    message = ""
    try:
        pipeline.train(load_recipe(recipe), run)
    except UserError as error:
        message = str(error)
    if message:
        assert Path(name).name in message or CHECKSUMS in message, name
        assert "\n" not in message
        return "refused"
    assert differing(contents(run), expected) == set(), f"{name} was damaged"
    return "the same"


@pytest.mark.parametrize("harm", [flip, cut])
def test_every_damaged_file_of_a_finished_run_is_named(
    tiny_recipe: Path, uninterrupted: Path, tmp_path: Path, harm: Callable[..., None]
) -> None:
    expected = contents(uninterrupted)
    for name in damaged_runs(uninterrupted):
        run = tmp_path / "run"
        shutil.copytree(uninterrupted, run)
        # A power cut leaves the beginning of the log's last line, which is written again.
        right = "the same" if harm is cut and name == "run.jsonl" else "refused"
        assert resumed_or_refused(run, name, tiny_recipe, expected, harm) == right, name
        shutil.rmtree(run)


CORE = {"recipe.yaml", "run.jsonl", "trainable.safetensors", "optimizer.pt", "log.json"}


@pytest.mark.parametrize("harm", [flip, cut])
@pytest.mark.parametrize("core", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_a_damaged_file_of_a_stopped_run_is_named_or_the_result_is_the_same(
    tiny_recipe: Path,
    uninterrupted: Path,
    stopped: Path,
    tmp_path: Path,
    harm: Callable[..., None],
    core: bool,
) -> None:
    expected = contents(uninterrupted)
    for name in damaged_runs(stopped):
        if (Path(name).name in CORE and "checkpoint-4" not in name) == core:
            run = tmp_path / "run"
            shutil.copytree(stopped, run)
            outcome = resumed_or_refused(run, name, tiny_recipe, expected, harm)
            assert outcome == "the same" or "checkpoint" not in name, name
            shutil.rmtree(run)


def test_a_damaged_checkpoint_is_not_used_and_the_one_before_is(stopped: Path) -> None:
    work = stopped / ".2-unsupervised.work"
    newest = last_checkpoint(work)
    assert newest is not None
    assert newest.name == "checkpoint-8"
    weights = newest / "trainable.safetensors"
    content = weights.read_bytes()
    try:
        weights.write_bytes(content[:-1])
        assert last_checkpoint(work) == work / "checkpoint-4"
    finally:
        weights.write_bytes(content)


def test_a_recipe_that_was_refused_can_be_corrected(tiny_recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = yaml.safe_load(tiny_recipe.read_text())
    settings["stages"] = settings["stages"][:1]
    settings["stages"][0] |= {"steps": 2, "eval_passages": 1000}
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(yaml.safe_dump(settings))
    with pytest.raises(UserError, match="too few"):
        pipeline.train(load_recipe(wrong), out)
    settings["stages"][0]["eval_passages"] = 8
    wrong.write_text(yaml.safe_dump(settings))
    assert pipeline.train(load_recipe(wrong), out).is_dir()
    assert run_folder.read_recipe(out).stages[0].steps == 2


def test_one_process_at_a_time_trains_in_a_folder(tiny_recipe: Path, tmp_path: Path) -> None:
    with (
        run_folder.alone_in(tmp_path),
        pytest.raises(UserError, match="another process trains in"),
    ):
        pipeline.train(load_recipe(tiny_recipe), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_process_that_ends_between_a_stage_and_its_last_line_loses_only_the_time(
    tiny_recipe: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(uninterrupted, out)
    lines = (out / "run.jsonl").read_text().splitlines(keepends=True)
    assert json.loads(lines[-1])["done"]
    (out / "run.jsonl").write_text("".join(lines[:-1]))
    shutil.rmtree(out / "model")
    (out / f".{STAGE_FOLDERS['supervised']}.work").mkdir()
    pipeline.train(load_recipe(tiny_recipe), out)
    assert differing(contents(out), contents(uninterrupted)) == set()
