"""What version 0.1 wrote is still read, and gone on with: the folders of fixtures/v0_1.

They were made by fixtures/v0_1/make_fixtures.py with the code of 0.1, and are never made anew.
"""

import importlib
import json
import os
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer

from llm2comp import recipe
from llm2comp.data import catalog
from llm2comp.errors import UserError
from llm2comp.evaluation import runner, store, suites
from llm2comp.inference.load import load, load_in
from llm2comp.model import encoder, released
from llm2comp.model.lineage import Lineage
from llm2comp.training import pipeline, run_folder
from llm2comp.training.scoring import score_run
from llm2comp.training.study import results
from llm2comp.training.study.plan import load_study
from llm2comp.training.study.run import StudyRun

V0_1 = Path(__file__).parent / "fixtures" / "v0_1"
EXPECTED = json.loads((V0_1 / "expected.json").read_text())
ENCODERS = list(EXPECTED["embeddings"])
ADAPTERS = {
    "run-finished/model": [
        f"run-finished/{stage}/adapter" for stage in ("1-pretext", "2-unsupervised", "3-supervised")
    ],
    "encoder-mntp": ["encoder-mntp/adapter"],
    "encoder-embedding-prediction": ["encoder-embedding-prediction/adapter"],
}
OBJECTIVES = {
    "encoder-mntp": ["pretext.objective=mntp", "pretext.attention=bidirectional"],
    "encoder-embedding-prediction": ["pretext.objective=embedding_prediction"],
}


@pytest.fixture(autouse=True)
def v0_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change into a copy of the folders: the paths within them are relative."""
    folder = tmp_path / "v0_1"
    shutil.copytree(V0_1, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LLM2COMP_CACHE", str(folder / "cache"))
    return folder


@pytest.fixture
def sts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve the pairs that 0.1 was scored on."""
    rows = lines(V0_1 / "stsb.jsonl")
    monkeypatch.setattr(catalog, "rows", lambda name: iter(rows))


@pytest.fixture
def nothing_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a task would be run."""

    def fail(*_: object, **__: object) -> None:
        pytest.fail("was scored again")

    monkeypatch.setattr(runner.mteb, "evaluate", fail)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def quiet() -> Console:
    return Console(quiet=True)


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def assert_vectors(model: SentenceTransformer, folder: str) -> None:
    vectors = model.encode(EXPECTED["texts"])
    np.testing.assert_allclose(vectors, EXPECTED["embeddings"][folder], atol=1e-5)


def assert_weights(folder: str, expected: str) -> None:
    """Compare two encoders' weights.

    To the bit on the machine that made the fixtures. Another processor adds up in another order,
    and the optimiser carries that into the weights; to go on without the optimiser's state or
    without that of the random numbers changes them by fifty times the tolerance.
    """
    one, other = (load_file(Path(name) / "model.safetensors") for name in (folder, expected))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        np.testing.assert_allclose(tensor, other[name], rtol=0, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("folder", ENCODERS)
def test_stock_sentence_transformers_reads_an_encoder_to_the_same_vectors(folder: str) -> None:
    assert_vectors(SentenceTransformer(folder, device="cpu"), folder)


@pytest.mark.parametrize("folder", ENCODERS)
def test_the_package_reads_an_encoder_to_the_same_vectors(folder: str) -> None:
    assert_vectors(load(folder, "float32"), folder)


def test_a_lineage_tells_all_stages() -> None:
    lineage = Lineage.read(Path("run-finished/model"))
    told = [stage.stage for stage in lineage.stages]
    assert told == ["pretext", "unsupervised", "supervised"]
    assert lineage.memory.tokens == 2
    assert lineage.versions["llm2comp"] == "0.1.0"


@pytest.mark.parametrize("folder", ADAPTERS)
def test_an_encoder_is_built_anew_of_its_lineage_and_adapters(folder: str) -> None:
    """The prompts around a text stand in no lineage of 0.1: they are those of the objective."""
    lineage = Lineage.read(Path(folder))
    assert_vectors(encoder.build(lineage, [Path(name) for name in ADAPTERS[folder]]), folder)


@pytest.mark.parametrize("folder", OBJECTIVES)
def test_a_stage_goes_on_from_an_encoder_of_any_form(folder: str) -> None:
    overrides = [*OBJECTIVES[folder], "unsupervised.steps=2"]
    run = recipe.load_recipe(Path("recipe.yaml"), overrides)
    shutil.copytree(folder, "run/1-pretext")
    first_two = run.model_copy(update={"stages": run.stages[:2]})
    model = pipeline.train(first_two, Path("run"), quiet())
    before, after = (Lineage.read(path) for path in (Path(folder), model))
    assert after.stages[:1] == before.stages
    assert [stage.stage for stage in after.stages] == ["pretext", "unsupervised"]
    tokenizers = [(path / "tokenizer.json").read_text() for path in (Path(folder), model)]
    assert tokenizers[0] == tokenizers[1]


@pytest.mark.parametrize("objective", ["reconstruction", "mntp"])
def test_an_objective_that_has_changed_goes_on_as_it_was(objective: str) -> None:
    """In 0.1 reconstruction was that of the text before the split, and mntp masked all it drew."""
    changes = [f"pretext.objective={objective}", "pretext.attention=bidirectional"]
    run = recipe.load_recipe(Path("recipe.yaml"), changes)
    run = run.model_copy(update={"stages": run.stages[:1]})
    out = Path("run")
    out.mkdir()
    settings = run.model_dump()
    for keys, new in (
        (settings["backbone"], "add_bos"),
        (settings["stages"][0], "masking"),
        (settings["stages"][0], "mask_probability"),
    ):
        del keys[new]
    (out / "recipe.yaml").write_text(yaml.safe_dump(settings))
    (trained,) = Lineage.read(pipeline.train(run, out, quiet())).stages
    expected = {"reconstruction": ("prefix_reconstruction", "bert"), "mntp": ("mntp", "all")}
    assert (trained.objective, trained.masking) == expected[objective]
    (new,) = Lineage.read(pipeline.train(run, Path("new"), quiet())).stages
    assert (new.objective, new.masking) == (objective, "bert")
    other = recipe.load_recipe(Path("recipe.yaml"), [*changes, "pretext.mask_probability=0.8"])
    other = other.model_copy(update={"stages": other.stages[:1]})
    with pytest.raises(UserError, match="another recipe"):
        pipeline.train(other, out, quiet())


def test_a_stopped_run_goes_on_to_what_it_would_have_been() -> None:
    stopped = Path("run-stopped")
    logged = lines(stopped / "run.jsonl")
    first = files(stopped / "1-pretext")
    pipeline.train(recipe.load_recipe(Path("recipe.yaml")), stopped, quiet())
    assert files(stopped / "1-pretext") == first
    more = lines(stopped / "run.jsonl")
    after = [e for e in logged if e["stage"] == "unsupervised" and e.get("step", 0) > 4]
    assert after, "the checkpoint is of step 4, and the log goes on"
    kept = [event for event in logged if event not in after]
    assert more[: len(kept)] == kept
    losses = [e["step"] for e in more if "loss" in e and e["stage"] == "unsupervised"]
    assert losses == [2, 4, 6, 8, 10], "each step is logged once"
    for stage in ("2-unsupervised", "3-supervised", "model"):
        assert_weights(f"run-stopped/{stage}", f"run-finished/{stage}")
    assert not list(stopped.glob(".*")), "work folders are left"


@pytest.mark.parametrize("file", ["recipe.yaml", "run-finished/recipe.yaml"])
def test_a_finished_run_is_skipped_and_another_recipe_refused(file: str) -> None:
    out = Path("run-finished")
    before = files(out)
    assert pipeline.train(recipe.load_recipe(Path(file)), out, quiet()) == out / "model"
    assert files(out) == before
    with pytest.raises(UserError, match="another recipe"):
        pipeline.train(recipe.load_recipe(Path(file), ["seed=1"]), out, quiet())


def test_what_was_made_before_the_choice_of_bos_has_bos(tmp_path: Path) -> None:
    """0.1 put BOS before every text, also where the tokenizer does not, and did not record it."""
    assert recipe.load_recipe(Path("recipe.yaml")).backbone.add_bos is None
    for folder in ("run-finished/model", "encoder-mntp"):
        assert Lineage.read(Path(folder)).backbone.add_bos is True
    for name in released.names():
        assert Lineage.read(released.RELEASED / name).backbone.add_bos is True
    assert run_folder.read_recipe(Path("run-finished")).backbone.add_bos is True
    out = Path("run-finished")
    pipeline.train(recipe.load_recipe(Path("recipe.yaml"), ["backbone.add_bos=true"]), out, quiet())
    with pytest.raises(UserError, match="another recipe"):
        pipeline.train(
            recipe.load_recipe(Path("recipe.yaml"), ["backbone.add_bos=false"]), out, quiet()
        )


def test_a_run_that_recorded_its_choice_of_bos_keeps_it(tmp_path: Path) -> None:
    run = recipe.load_recipe(Path("recipe.yaml"))
    (tmp_path / "run").mkdir()
    claimed = pipeline._claim(run, tmp_path / "run", planned=False)
    assert claimed.backbone.add_bos is None
    assert pipeline._claim(run, tmp_path / "run", planned=False) == claimed
    other = recipe.load_recipe(Path("recipe.yaml"), ["backbone.add_bos=true"])
    (tmp_path / "run" / "1-pretext").mkdir()
    with pytest.raises(UserError, match="another recipe"):
        pipeline._claim(other, tmp_path / "run", planned=False)


@pytest.mark.usefixtures("nothing_scored")
def test_a_finished_run_s_scores_are_taken_as_they_are() -> None:
    kept = json.loads(Path("run-finished/scores.json").read_text())
    rows = score_run(recipe.load_recipe(Path("recipe.yaml")), Path("run-finished"))
    points = {name: [score.main_score for score in found] for name, found in rows.items()}
    assert points == {
        name: [score["main_score"] for score in found] for name, found in kept.items()
    }
    assert list(points) == ["last-token", "after stage 1", "after UCL", "after SCL"]


@pytest.mark.usefixtures("sts")
def test_a_stopped_study_goes_on_with_the_cell_that_is_missing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    study, out, expected = load_study(Path("study.yaml")), Path("study"), EXPECTED["study"]
    before = results.read(out, study.name).trials
    cells = {path.name for path in (out / "cells").iterdir()}
    whole, stopped = (
        out / "cells" / name for name in (expected["cells"][0], expected["cells"][-1])
    )
    trained, logged = files(whole), lines(stopped / "run.jsonl")
    found = StudyRun(study, out, quiet()).run()
    assert not found.failed
    assert list(found.trials) == expected["cells"]
    assert found.tuning_table() == expected["tuning"]
    assert {name: found.trials[name] for name in before} == before
    # Any other cell that was trained would have a folder again.
    assert {path.name for path in (out / "cells").iterdir()} == cells
    assert files(whole) == trained
    more = lines(stopped / "run.jsonl")[len(logged) :]
    assert [event["step"] for event in more if "loss" in event] == [4, 6]  # the checkpoint is of 3
    assert Lineage.read(stopped / "1-pretext").stages[0].masking == "all"  # as 0.1 masked
    assert "every passage weighs the same" in caplog.text
    one = found.trials[expected["missing"]]
    assert one.tokens == expected["tokens"]
    (scored,) = one.scores.values()
    # On another processor one pair may change its place in the order of 24.
    assert results.mean(scored) == pytest.approx(expected["score"], abs=2)
    assert [row[:2] for row in found.score_table()] == [row[:2] for row in expected["table"]]


@pytest.mark.usefixtures("nothing_scored")
def test_a_stored_result_is_found_by_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    known, version = EXPECTED["result"], metadata.version
    recorded = EXPECTED["versions"] | {"llm2comp": "0.1.0"}
    monkeypatch.setattr(metadata, "version", lambda name: recorded.get(name) or version(name))
    monkeypatch.setattr(store, "fingerprint", lambda model: known["fingerprint"])
    (task,) = suites.tasks([known["task"]], quick=True)
    assert store.key(known["fingerprint"], task, "", quick=True) == known["key"]
    model = load_in(known["model"], torch.float32)
    (score,) = runner.evaluate(model, known["model"], [task], store.ResultStore())
    assert score.main_score == known["main_score"]
    (stored,) = store.ResultStore().all()
    assert stored.lineage == Lineage.read(Path(known["model"]))


def test_a_model_s_fingerprint_is_as_before() -> None:
    for name in ("sentence-transformers", "tokenizers"):
        if metadata.version(name) != EXPECTED["versions"][name]:
            pytest.skip(f"another {name} may write its settings in another way")
    model = load_in(EXPECTED["result"]["model"], torch.float32)
    assert store.fingerprint(model) == EXPECTED["result"]["fingerprint"]


def test_no_path_of_the_machine_that_made_the_folders_is_left_in_them() -> None:
    for path in V0_1.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".yaml"):
            assert f"{os.sep}tmp{os.sep}" not in path.read_text(), path
    sources = yaml.safe_load(Path("run-finished/recipe.yaml").read_text())
    assert sources["backbone"]["name"] == "backbone"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("llm2comp", "fetch"),
        ("llm2comp.recipe", "load_recipe"),
        ("llm2comp.stages.chain", "train"),
        ("llm2comp.merging", "merge_memory"),
    ],
)
def test_a_name_that_the_documentation_of_0_1_gave_still_imports(module: str, name: str) -> None:
    assert callable(getattr(importlib.import_module(module), name))
