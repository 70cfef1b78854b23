"""Scores while a stage trains: they change nothing, keep the best step, and end the stage."""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from llm2comp.errors import UserError
from llm2comp.evaluation import runner, suites
from llm2comp.evaluation.own_data.tasks import OwnData
from llm2comp.recipe import Recipe, load_recipe
from llm2comp.recipe_parts import During, Evaluation
from llm2comp.training import contrastive, pipeline
from llm2comp.training.checkpoints import start_log
from llm2comp.training.monitoring import trackers
from llm2comp.training.monitoring.development import (
    Development,
    DevelopmentWatch,
    TaskScore,
    check_during,
)
from llm2comp.training.monitoring.divergence import DivergenceError
from llm2comp.training.monitoring.progress import RunProgress
from llm2comp.training.monitoring.run_log import RunLog
from llm2comp.training.run_folder import read_events
from llm2comp.training.stage_context import StageContext
from llm2comp.training.supervised import train_supervised

STEPS, EVERY = 14, 3
CHANGING = {"tokens_per_second"}


class StoppedError(Exception):
    """As if the process ended."""


@pytest.fixture(scope="module")
def source(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder after stage 1."""
    recipe = load_recipe(tiny_recipe, ["backbone.dtype=float32", "pretext.steps=2"])
    out = tmp_path_factory.mktemp("source") / "run"
    return pipeline.train(recipe.model_copy(update={"stages": recipe.stages[:1]}), out)


@pytest.fixture
def dev(tmp_path: Path, sentences: list[str]) -> Path:
    """Pairs of the first and the last words of a sentence."""
    file = tmp_path / "dev.jsonl"
    rows = [{"anchor": t[:12], "positive": t[12:]} for t in sentences]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


@pytest.fixture
def recipe(tiny_recipe: Path, dev: Path) -> Recipe:
    sizes = [f"supervised.steps={STEPS}", "supervised.save_steps=4", "supervised.eval_steps=5"]
    loaded = load_recipe(tiny_recipe, ["backbone.dtype=float32", *sizes])
    during = During(data=str(dev), every=EVERY, keep_best=False)
    return loaded.model_copy(update={"evaluation": Evaluation(tasks=[], during=during)})


def with_during(recipe: Recipe, **changes: Any) -> Recipe:
    assert recipe.evaluation.during is not None
    during = recipe.evaluation.during.model_copy(update=changes)
    return recipe.model_copy(update={"evaluation": Evaluation(tasks=[], during=during)})


def train(recipe: Recipe, source: Path, out: Path) -> Path:
    """Train or continue stage 3 in a folder, as the pipeline does, and return the encoder."""
    out.mkdir(exist_ok=True)
    log = RunLog(out / "run.jsonl", Console(quiet=True))
    work = out / "work"
    start_log(log, "supervised", work)
    context = StageContext(recipe, recipe.stages[-1], source, out / "encoder", work, log)
    train_supervised(context)  # type: ignore[arg-type]
    return context.target


def script(patch: pytest.MonkeyPatch, scores: Mapping[int, float]) -> None:
    """Let the scores be these, by the step at which the encoder is scored."""
    original = DevelopmentWatch._score

    def score(self: DevelopmentWatch, state: Any, control: Any) -> float:
        value = scores[state.global_step]
        patch.setattr(Development, "scores", lambda *_: [TaskScore("dev", "m", value, "8 samples")])
        return original(self, state, control)

    patch.setattr(DevelopmentWatch, "_score", score)
    patch.setattr(DevelopmentWatch, "_require_same_data", lambda _: None)


def stop_at(patch: pytest.MonkeyPatch, step: int | None) -> None:
    """End the process after a step, or after the last one if it is None."""
    original = RunProgress.on_step_end

    def on_step_end(self: RunProgress, args: Any, state: Any, control: Any, **other: Any) -> None:
        original(self, args, state, control, **other)
        if state.global_step == step:
            raise StoppedError

    def write(*_: Any) -> None:
        raise StoppedError

    patch.setattr(RunProgress, "on_step_end", on_step_end)
    if step is None:
        patch.setattr(contrastive, "_write", write)


def events(out: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in e.items() if k not in CHANGING} for e in read_events(out)]


def measured(out: Path) -> list[dict[str, Any]]:
    """Return the events without the warnings of collapse, which each session gives once."""
    return [event for event in events(out) if "warning" not in event]


def scores_of(out: Path) -> dict[int, float]:
    return {event["step"]: event["score"] for event in events(out) if "score" in event}


def weights(encoder: Path) -> bytes:
    return (encoder / "model.safetensors").read_bytes()


def test_scores_do_not_change_training(recipe: Recipe, source: Path, tmp_path: Path) -> None:
    without = recipe.model_copy(update={"evaluation": Evaluation(tasks=[])})
    plain = train(without, source, tmp_path / "plain")
    scored = train(recipe, source, tmp_path / "scored")
    assert weights(scored) == weights(plain)
    others = [e for e in measured(tmp_path / "scored") if not {"score", "kept"} & e.keys()]
    assert others == measured(tmp_path / "plain")


def test_a_score_is_that_of_the_saved_encoder(
    recipe: Recipe, source: Path, dev: Path, tmp_path: Path
) -> None:
    long = " ".join(["word"] * 80)  # training reads fewer tokens than the saved encoder
    with dev.open("a") as stream:
        stream.writelines(
            json.dumps({"anchor": f"{long} {end}", "positive": f"{long} {end}s"}) + "\n"
            for end in ("orchestra", "harbour", "immune")
        )
    # The stage stores a prompt, which the scores have too.
    instructed = recipe.stages[-1].data[0].model_copy(update={"query_instruction": "Find it"})
    stage = recipe.stages[-1].model_copy(update={"max_length": 32, "data": [instructed]})
    recipe = recipe.model_copy(update={"stages": [*recipe.stages[:-1], stage]})
    encoder = train(recipe, source, tmp_path / "run")
    found = scores_of(tmp_path / "run")
    assert list(found) == [0, 3, 6, 9, 12, STEPS]
    data = OwnData(dev)
    prompts = SentenceTransformer(str(encoder), device="cpu").prompts
    assert "Find it" in prompts["query"]
    for step, folder in ((0, source), (STEPS, encoder)):
        model = SentenceTransformer(str(folder), device="cpu", prompts=prompts)
        assert found[step] == pytest.approx(runner.main_score(model, data.task()), abs=1e-2)
    (last,) = (
        e["scores"] for e in events(tmp_path / "run") if e.get("step") == STEPS and "score" in e
    )
    assert last == {data.name: {"ndcg_at_10": found[STEPS], "over": "11 samples"}}


def test_scores_in_bfloat16_are_computed_from_cosines_in_float32(
    recipe: Recipe, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 many cosines are equal, and nDCG depends on how such ties are broken."""
    seen: list[tuple[torch.dtype, torch.dtype]] = []

    def scores(self: Development, model: SentenceTransformer) -> list[TaskScore]:
        linear = next(m for m in model.modules() if isinstance(m, torch.nn.Linear))
        inner: list[torch.dtype] = []
        hook = linear.register_forward_hook(lambda _, __, output: inner.append(output.dtype))
        embeddings = model.encode(["a text", "another"], convert_to_tensor=True)
        hook.remove()
        seen.append((inner[0], model.similarity(embeddings, embeddings).dtype))
        return [TaskScore("dev", "m", 1.0, "8 samples")]

    monkeypatch.setattr(Development, "scores", scores)
    backbone = recipe.backbone.model_copy(update={"dtype": "bfloat16"})
    train(recipe.model_copy(update={"backbone": backbone}), source, tmp_path / "run")
    assert set(seen) == {(torch.bfloat16, torch.float32)}


def test_the_best_step_is_the_result(recipe: Recipe, source: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        script(patch, {0: 50, 3: 60, 6: 70, 9: 65, 12: 60, STEPS: 69})
        best = train(with_during(recipe, keep_best=True), source, tmp_path / "best")
    with pytest.MonkeyPatch.context() as patch:
        script(patch, {0: 80, 3: 60, 6: 70, 9: 65, 12: 60, STEPS: 69})
        last = train(recipe, source, tmp_path / "last")
    kept = load_file(tmp_path / "best" / "work" / "checkpoint-6" / "trainable.safetensors")
    adapter = load_file(best / "adapter" / "adapter_model.safetensors")
    assert adapter
    assert all(any(tensor.equal(one) for one in kept.values()) for tensor in adapter.values())
    assert weights(best) != weights(last)
    record = json.loads((best / "llm2comp.json").read_text())["stages"][-1]
    assert (record["steps"], record["kept_step"]) == (STEPS, 6)
    assert f"6 of {STEPS} x 8" in (best / "README.md").read_text()
    assert json.loads((last / "llm2comp.json").read_text())["stages"][-1]["kept_step"] is None
    (event,) = (e["kept"] for e in events(tmp_path / "best") if "kept" in e)
    assert event == {"step": 6, "score": 70, "start": 50}
    told = (
        "the score is 69.0 and was 80.0 before the stage: on this data the encoder has not become"
    )
    assert not any(told in e.get("warning", "") for e in events(tmp_path / "best"))
    assert any(told in e.get("warning", "") for e in events(tmp_path / "last"))


def test_a_stage_that_goes_on_after_its_last_step_trains_no_step_more(
    recipe: Recipe, source: Path, tmp_path: Path
) -> None:
    """It was killed as it wrote its encoder. Two sources of 52 rows give 14 batches, not 13."""
    stage = recipe.stages[-1].model_copy(update={"steps": 13, "scheduler": "constant_with_warmup"})
    recipe = recipe.model_copy(update={"stages": [*recipe.stages[:-1], stage]})
    whole = train(recipe, source, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, None)
        with pytest.raises(StoppedError):
            train(recipe, source, tmp_path / "stopped")
    resumed = train(recipe, source, tmp_path / "stopped")
    assert weights(resumed) == weights(whole)
    assert measured(tmp_path / "stopped") == measured(tmp_path / "whole")


ALSO = [pytest.param(step, marks=pytest.mark.exhaustive) for step in (2, 9, 11)]


@pytest.mark.parametrize("step", [7, None, *ALSO])
def test_a_stage_that_ends_early_is_resumed(
    recipe: Recipe,
    source: Path,
    tmp_path: Path,
    step: int | None,
    uninterrupted: Path,
) -> None:
    recipe = with_during(recipe, keep_best=True, patience=2)
    out = tmp_path / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        script(patch, FALLING)
        stop_at(patch, step)
        with pytest.raises(StoppedError):
            train(recipe, source, out)
    moved = tmp_path / "moved"
    shutil.move(out, moved)
    with pytest.MonkeyPatch.context() as patch:
        script(patch, FALLING)
        train(recipe, source, moved)
    assert measured(moved) == measured(uninterrupted)
    assert weights(moved / "encoder") == weights(uninterrupted / "encoder")


FALLING = {0: 50.0, 3: 60.0, 6: 70.0, 9: 65.0, 12: 70.0, STEPS: 99.0}


@pytest.fixture(scope="module")
def uninterrupted(
    tiny_recipe: Path, source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A stage whose best score is that of step 6, so that it ends at step 12."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    file = folder / "dev.jsonl"
    file.write_text('{"anchor": "a", "positive": "p"}\n{"anchor": "b", "positive": "q"}\n')
    sizes = [f"supervised.steps={STEPS}", "supervised.save_steps=4", "supervised.eval_steps=5"]
    recipe = load_recipe(tiny_recipe, ["backbone.dtype=float32", *sizes])
    during = During(data=str(file), every=EVERY, patience=2)
    recipe = recipe.model_copy(update={"evaluation": Evaluation(tasks=[], during=during)})
    with pytest.MonkeyPatch.context() as patch:
        script(patch, FALLING)
        train(recipe, source, folder / "run")
    assert list(scores_of(folder / "run")) == [0, 3, 6, 9, 12]
    return folder / "run"


def test_data_that_changed_since_the_stage_began_is_refused(
    recipe: Recipe, source: Path, dev: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 7)
        with pytest.raises(StoppedError):
            train(recipe, source, tmp_path / "run")
    with dev.open("a") as stream:
        stream.write('{"anchor": "new", "positive": "a new row"}\n')
    with pytest.raises(UserError, match=r"dev\.jsonl has changed since supervised began"):
        train(with_during(recipe, patience=1), source, tmp_path / "run")


def test_scores_that_only_inform_may_be_asked_for_later(
    recipe: Recipe, source: Path, dev: Path, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 7)
        with pytest.raises(StoppedError):
            train(recipe.model_copy(update={"evaluation": Evaluation(tasks=[])}), source, tmp_path)
    train(recipe, source, tmp_path)
    assert list(scores_of(tmp_path)) == [6, 9, 12, STEPS]


def test_trackers_and_the_bar_get_losses_and_scores(
    recipe: Recipe, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, dict[str, float]] = {}

    class Recorder(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            seen.setdefault(state.global_step, {}).update(logs)

    shown: list[str] = []

    def on_train_end(self: RunProgress, *_: Any, **__: Any) -> None:
        shown.append(self.bar.tasks[0].fields["loss"])

    monkeypatch.setattr(RunProgress, "on_train_end", on_train_end)
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "mlflow", Recorder)
    monkeypatch.setattr(trackers, "get_available_reporting_integrations", lambda: ["mlflow"])
    recipe = recipe.model_copy(update={"report_to": ["mlflow"]})
    trackers.require_trackers(recipe.report_to)
    train(recipe, source, tmp_path / "run")
    scores = scores_of(tmp_path / "run")
    assert {
        step: logs["eval_score"] for step, logs in seen.items() if "eval_score" in logs
    } == scores
    # Steps 6 and 12 have both: a score must not take the place of the loss.
    losses = {e["step"]: e["loss"] for e in events(tmp_path / "run") if "loss" in e}
    assert list(losses) == list(range(2, STEPS + 1, 2))
    assert {step: logs["loss"] for step, logs in seen.items() if "loss" in logs} == losses
    assert shown == [f"loss {losses[STEPS]:.3f}, score {scores[STEPS]:.1f}"]


def test_a_score_that_is_not_finite_stops_the_stage(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "main_score", lambda *_: float("nan"))
    assert recipe.evaluation.during is not None
    development = Development(recipe.evaluation, recipe.evaluation.during)
    with pytest.raises(DivergenceError, match=r"the score on dev\.jsonl@\w+ is not finite"):
        development.scores(None)  # type: ignore[arg-type]


def test_a_test_set_and_trained_rows_are_told(
    recipe: Recipe, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suites, "load", lambda _: None)  # STS12 is on the hub
    trained = recipe.stages[-1].data[0].source
    recipe = with_during(recipe, tasks=["STS17", "STSBenchmarkDev", "STS12"], data=trained)
    evaluation = recipe.evaluation.model_copy(update={"quick": False})
    with caplog.at_level(logging.WARNING, logger="llm2comp"):
        check_during(recipe.model_copy(update={"evaluation": evaluation}), recipe.stages)
    tests, training = caplog.messages[:-1], caplog.messages[-1]
    assert [message.split(",")[0].split()[-1] for message in tests] == ["STS17", "STS12"]
    assert "pairs.jsonl, which is trained on too" in training
    caplog.clear()
    check_during(with_during(recipe, data="removed.jsonl"), recipe.stages[:1])
    assert not caplog.messages
    check_during(recipe.model_copy(update={"stages": recipe.stages[:1]}), recipe.stages[:1])
    assert "the recipe has neither" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["evaluation.during.data=no.jsonl"], "no.jsonl: cannot be read"),
        (["evaluation.during.tasks=[STSBenchmarkDevv]"], "did you mean 'STSBenchmarkDev'"),
        (["report_to=[wandbb]"], "report_to: 'wandbb' is not one of"),
        (["report_to=[tensorboard]"], "leave tensorboard out"),
        (["report_to=[wandb]"], "report_to: wandb is not installed"),
    ],
)
def test_a_mistake_is_found_before_anything_is_trained(
    tiny_recipe: Path,
    tmp_path: Path,
    changes: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trackers, "get_available_reporting_integrations", list)
    recipe = load_recipe(tiny_recipe, ["evaluation.during={every: 5, tasks: [STS17]}", *changes])
    with pytest.raises(UserError, match=".") as caught:
        pipeline.train(recipe, tmp_path / "run", Console(quiet=True))
    assert message in str(caught.value)
    assert not list((tmp_path / "run").glob("[!.r]*"))


def test_what_chooses_the_step_is_part_of_the_run(recipe: Recipe) -> None:
    known = pipeline._compared(recipe, frozenset())
    assert pipeline._compared(with_during(recipe, every=7), frozenset()) == known
    assert pipeline._compared(with_during(recipe, patience=1), frozenset()) != known
    best = with_during(recipe, keep_best=True)
    assert pipeline._compared(best, frozenset()) != known
    other = pipeline._compared(with_during(recipe, keep_best=True, every=7), frozenset())
    assert other != pipeline._compared(best, frozenset())
