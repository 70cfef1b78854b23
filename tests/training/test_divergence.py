"""A run with a learning rate far too high stops with one line, or its model is finite."""

import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from llm2comp import recipe
from llm2comp.cli.app import app
from llm2comp.errors import UserError
from llm2comp.recipe import STAGE_FOLDERS
from llm2comp.training import contrastive, pipeline
from llm2comp.training.monitoring import divergence
from llm2comp.training.objectives.registry import OBJECTIVES
from llm2comp.utils.checksums import CHECKSUMS

STEPS = 6
CONTRASTIVE: dict[str, tuple[str, dict[str, Any]]] = {
    "UCL": ("unsupervised", {}),
    "InfoNCE": ("supervised", {"data": ["pairs.jsonl"], "mini_batch_size": 8}),
    "GradCache": ("supervised", {"data": ["pairs.jsonl"], "mini_batch_size": 2}),
    "GradCache by tokens": ("supervised", {"data": ["pairs.jsonl"], "mini_batch_tokens": 100}),
    "CoSENT": ("supervised", {"data": ["scored.jsonl"]}),
}
"""The stage and the settings of every loss of stages 2 and 3."""


@pytest.fixture(scope="module")
def pretrained(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder folder of a short, healthy stage 1."""
    out = tmp_path_factory.mktemp("pretrained")
    settings = yaml.safe_load(tiny_recipe.read_text())
    settings["stages"] = settings["stages"][:1]
    loaded = recipe.parse_recipe(settings, [f"pretext.steps={STEPS}"], "test")
    pipeline.train(loaded, out)
    return out / STAGE_FOLDERS["pretext"]


def one_stage(tiny_recipe: Path, stage: str, changes: dict[str, Any], folder: Path) -> Path:
    """Write the tiny recipe with one short stage, after stage 1 if it is a later one."""
    settings = yaml.safe_load(tiny_recipe.read_text())
    first, *_ = settings["stages"]
    (wanted,) = [s for s in settings["stages"] if s["stage"] == stage]
    if "data" in changes:
        names = [str(tiny_recipe.parent / name) for name in changes["data"]]
        changes = changes | {"data": [{"source": name} for name in names]}
    wanted |= {"steps": STEPS, "save_steps": 2, "log_steps": 1, "eval_steps": 3} | changes
    settings["stages"] = [wanted] if wanted is first else [first, wanted]
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def run_folder(folder: Path, stage: str, pretrained: Path) -> Path:
    """Return a new run folder, where stage 1 is done if the stage comes after it."""
    out = folder / "run"
    if stage != "pretext":
        shutil.copytree(pretrained, out / STAGE_FOLDERS["pretext"])
    return out


def require_finite_files(out: Path) -> None:
    files = list(out.rglob("*.safetensors"))
    for file in files:
        for name, tensor in load_file(file).items():
            assert tensor.isfinite().all(), (file, name)
    for file in out.rglob("optimizer.pt"):
        for state in torch.load(file)["state"].values():
            assert all(value.isfinite().all() for value in state.values())


def one_line_or_finite(path: Path, out: Path, stage: str, rate: float) -> str:
    """Run a recipe at a learning rate; return the line that it stops with, or nothing."""
    loaded = recipe.load_recipe(path, [f"{stage}.learning_rate={rate}"])
    line = ""
    try:
        pipeline.train(loaded, out)
    except UserError as error:
        line = str(error)
        assert "\n" not in line
        assert f"{stage} diverged at step" in line
        assert f"{stage}.learning_rate" in line
        assert not (out / STAGE_FOLDERS[stage]).exists()
        assert not (out / "model").exists()
    require_finite_files(out)
    for event in map(json.loads, (out / "run.jsonl").open()):
        assert math.isfinite(event.get("loss", 0))
        assert math.isfinite(event.get("grad_norm", 0))
    return line


@pytest.mark.parametrize(
    ("stage", "changes"),
    [("pretext", {}), CONTRASTIVE["UCL"], ("supervised", {})],
    ids=["distillation", "UCL", "InfoNCE and CoSENT"],
)
def test_a_divergence_is_one_line_and_the_run_goes_on_at_another_rate(
    stage: str, changes: dict[str, Any], tiny_recipe: Path, pretrained: Path, tmp_path: Path
) -> None:
    path = one_stage(tiny_recipe, stage, changes, tmp_path)
    out = run_folder(tmp_path, stage, pretrained)
    line = one_line_or_finite(path, out, stage, 1e30)
    assert "at step 2 (learning rate 9.3" in line, "a cosine from 1e30 at step 1"
    assert "the loss is not finite" in line
    event = json.loads((out / "run.jsonl").read_text().splitlines()[-1])["diverged"]
    assert event["step"] == 2
    texts = (tiny_recipe.parent / "texts.txt").read_text()
    assert len(event["rows"]) == (4 if stage == "pretext" else 8)
    assert all(row and row in texts for row in event["rows"])
    assert repr(event["rows"][0]) in line
    if stage != "pretext":  # before the first checkpoint of a run any recipe may take its place
        other = recipe.load_recipe(path, [f"{stage}.learning_rate=0.001", f"{stage}.batch_size=2"])
        with pytest.raises(UserError, match="another recipe"):
            pipeline.train(other, out)
    assert one_line_or_finite(path, out, stage, 1e-3) == ""
    known = yaml.safe_load((out / "recipe.yaml").read_text())["stages"][-1]
    assert (known["stage"], known["learning_rate"]) == (stage, 1e-3)
    assert not list(out.glob(".*"))


RATES = (1e30, 100.0, 1.0)


def require_it_goes_on(path: Path, out: Path, stage: str) -> None:
    """Check that a lower rate ends in a finite model.

    The weights of a checkpoint may be finite and far too large. Then the stage diverges once more
    for each such checkpoint, and goes on from the one before.
    """
    for _ in range(3):
        if (out / "model").exists() or not one_line_or_finite(path, out, stage, 1e-3):
            break
    assert (out / "model").exists()


@pytest.mark.exhaustive
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_any_rate_in_stage_1(
    objective: str, rate: float, tiny_recipe: Path, pretrained: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"objective": objective}
    if OBJECTIVES[objective].bidirectional:
        changes["attention"] = "bidirectional"
    path = one_stage(tiny_recipe, "pretext", changes, tmp_path)
    out = run_folder(tmp_path, "pretext", pretrained)
    line = one_line_or_finite(path, out, "pretext", rate)
    assert line or (out / "model").exists()
    require_it_goes_on(path, out, "pretext")


@pytest.mark.exhaustive
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("loss", CONTRASTIVE)
def test_any_rate_in_stages_2_and_3(
    loss: str, rate: float, tiny_recipe: Path, pretrained: Path, tmp_path: Path
) -> None:
    stage, changes = CONTRASTIVE[loss]
    path = one_stage(tiny_recipe, stage, changes, tmp_path)
    out = run_folder(tmp_path, stage, pretrained)
    line = one_line_or_finite(path, out, stage, rate)
    assert line or (out / "model").exists()
    require_it_goes_on(path, out, stage)


def test_the_exit_status_is_2(
    tiny_recipe: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("llm2comp"), "handlers", [])  # puts them back
    path = one_stage(tiny_recipe, "unsupervised", {}, tmp_path)
    out = run_folder(tmp_path, "unsupervised", pretrained)
    arguments = ["train", str(path), "unsupervised.learning_rate=1e30", "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert result.output.count("diverged at step 2") == 1


class _StopError(Exception):
    pass


@pytest.mark.parametrize("anew", [False, True])
def test_the_checkpoint_before_a_divergence_goes_on_at_the_new_rate(
    anew: bool,
    tiny_recipe: Path,
    pretrained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Step 5 diverges: checkpoint 4 began it and is removed, checkpoint 2 goes on.

    Without checkpoint 2, the stage begins anew at the new rate, as the guide says.
    """
    stage = "supervised"
    path = one_stage(tiny_recipe, stage, {"memory_learning_rate": 2e-3}, tmp_path)
    out = run_folder(tmp_path, stage, pretrained)
    compute = contrastive.ContrastiveTrainer.compute_loss

    def broken(self: Any, *args: Any, **options: Any) -> Any:
        loss = compute(self, *args, **options)
        return loss * math.nan if self.step == 5 else loss

    with monkeypatch.context() as patch:
        patch.setattr(contrastive.ContrastiveTrainer, "compute_loss", broken)
        line = one_line_or_finite(path, out, stage, 1e-2)
    assert "at step 5" in line
    assert "checkpoint-4 was bad already and is removed" in line
    work = out / ".3-supervised.work"
    assert [folder.name for folder in work.glob("checkpoint-*")] == ["checkpoint-2"]
    if anew:
        shutil.rmtree(work / "checkpoint-2")
    changes = ["learning_rate=1e-4", "memory_learning_rate=1e-5", "warmup_steps=4"]
    loaded = recipe.load_recipe(path, [f"{stage}.{change}" for change in changes])
    pipeline.train(loaded, out)
    events = [json.loads(line) for line in (out / "run.jsonl").open()]
    rates = [(e["step"], e["learning_rate"]) for e in events if "learning_rate" in e]
    assert [step for step, _ in rates] == [1, 2, 3, 4, 5, 6]
    # Warm-up over four steps, then a cosine over two.
    assert [rate for _, rate in rates[2:]] == pytest.approx([0.5e-4, 0.75e-4, 1e-4, 0.5e-4])
    assert (max(rate for _, rate in rates[:2]) < 1e-4) == anew
    require_finite_files(out)


def test_every_group_of_parameters_goes_on_at_its_new_rate(
    tiny_recipe: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = one_stage(tiny_recipe, "supervised", {"memory_learning_rate": 2e-3}, tmp_path)
    out = run_folder(tmp_path, "supervised", pretrained)
    used: list[list[float]] = []
    step = contrastive.ContrastiveTrainer.training_step

    def stopping(self: Any, *args: Any, **options: Any) -> Any:
        if self.state.global_step == 3:
            raise _StopError
        return step(self, *args, **options)

    def noting(self: Any, *args: Any, **options: Any) -> Any:
        loss = step(self, *args, **options)
        used.append(sorted(self.rates))
        return loss

    monkeypatch.setattr(contrastive.ContrastiveTrainer, "training_step", stopping)
    with pytest.raises(_StopError):
        pipeline.train(recipe.load_recipe(path), out)
    (out / ".3-supervised.work" / divergence.MARK).touch()
    monkeypatch.setattr(contrastive.ContrastiveTrainer, "training_step", noting)
    changes = ["supervised.learning_rate=1e-4", "supervised.memory_learning_rate=1e-5"]
    pipeline.train(recipe.load_recipe(path, changes), out)
    course = [(1 + math.cos(math.pi * at / STEPS)) / 2 for at in range(2, STEPS)]
    assert used == [pytest.approx([1e-5 * c, 1e-4 * c]) for c in course]


def test_another_rate_is_refused_where_nothing_diverged(
    tiny_recipe: Path, pretrained: Path, tmp_path: Path
) -> None:
    path = one_stage(tiny_recipe, "unsupervised", {}, tmp_path)
    out = run_folder(tmp_path, "unsupervised", pretrained)
    (out / "recipe.yaml").write_text(
        yaml.safe_dump(recipe.load_recipe(path).model_dump(), sort_keys=False)
    )
    with pytest.raises(UserError, match="another recipe"):
        pipeline.train(recipe.load_recipe(path, ["unsupervised.learning_rate=0.5"]), out)


def test_a_gradient_that_is_not_finite_leaves_the_weights_as_they_are(
    tiny_recipe: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is finite, and one number of the gradient is not."""
    path = one_stage(tiny_recipe, "unsupervised", {"save_steps": 1}, tmp_path)
    out = run_folder(tmp_path, "unsupervised", pretrained)
    compute = contrastive.ContrastiveTrainer.compute_loss
    seen: dict[str, Any] = {}

    def broken(self: Any, *args: Any, **options: Any) -> Any:
        loss = compute(self, *args, **options)
        if self.step == 3:
            first = next(p for p in self.model.parameters() if p.requires_grad)
            seen.update(parameter=first, value=first.detach().clone())
            loss = loss + (first.flatten()[0] - first.detach().flatten()[0]).abs().sqrt()
        return loss

    monkeypatch.setattr(contrastive.ContrastiveTrainer, "compute_loss", broken)
    line = one_line_or_finite(path, out, "unsupervised", 1e-2)
    assert "at step 3" in line
    assert "the norm of its gradient is not finite" in line
    assert torch.equal(seen["parameter"].detach(), seen["value"])
    work = out / ".2-unsupervised.work"
    assert [folder.name for folder in work.glob("checkpoint-*")] == ["checkpoint-1"]


def test_a_weight_that_is_not_finite_stops_before_the_checkpoint(
    tiny_recipe: Path, pretrained: Path, tmp_path: Path
) -> None:
    """The first update overflows float32; the step before was good."""
    path = one_stage(tiny_recipe, "unsupervised", {"save_steps": 1, "eval_steps": 1}, tmp_path)
    out = run_folder(tmp_path, "unsupervised", pretrained)
    line = one_line_or_finite(path, out, "unsupervised", 1e39)
    assert "at step 1 (learning rate 1e+39): a trained weight is not finite" in line
    assert not list((out / ".2-unsupervised.work").glob("checkpoint-*"))


def test_the_last_step_is_checked_too(tiny_recipe: Path, pretrained: Path, tmp_path: Path) -> None:
    changes = {"steps": 1, "eval_pairs": 0}
    path = one_stage(tiny_recipe, "unsupervised", changes, tmp_path)
    out = run_folder(tmp_path, "unsupervised", pretrained)
    line = one_line_or_finite(path, out, "unsupervised", 1e30)
    assert "at step 1 (learning rate 1e+30): the loss after the last step" in line


def test_a_held_out_measurement_that_is_not_finite_is_the_same_line(
    tiny_recipe: Path, pretrained: Path, tmp_path: Path
) -> None:
    path = one_stage(tiny_recipe, "pretext", {"eval_steps": 1}, tmp_path)
    out = run_folder(tmp_path, "pretext", pretrained)
    line = one_line_or_finite(path, out, "pretext", 1e30)
    assert "at step 1 (learning rate 1e+30 and 0.02): an embedding of the held-out texts" in line


def test_an_encoder_of_nan_is_not_trained_further(
    tiny_recipe: Path, pretrained: Path, tmp_path: Path
) -> None:
    path = one_stage(tiny_recipe, "unsupervised", {}, tmp_path)
    out = run_folder(tmp_path, "unsupervised", pretrained)
    file = out / STAGE_FOLDERS["pretext"] / "model.safetensors"
    tensors = load_file(file)
    tensors["embed_tokens.weight"][7, 3] = math.nan
    save_file(tensors, file, {"format": "pt"})
    (file.parent / CHECKSUMS).unlink()
    with pytest.raises(UserError, match=r"1-pretext.*embed_tokens\.weight.*train it again"):
        pipeline.train(recipe.load_recipe(path), out)


def test_a_healthy_run_has_no_spike_and_logs_the_gradient(
    tiny_recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "run"
    changes = [f"{stage}.log_steps=1" for stage in STAGE_FOLDERS]
    pipeline.train(recipe.load_recipe(tiny_recipe, changes), out)
    assert [text for text in caplog.messages if "spike" in text or "no gradient" in text] == []
    events = [json.loads(line) for line in (out / "run.jsonl").open()]
    norms = [event["grad_norm"] for event in events if "loss" in event]
    assert len(norms) == 20 + 12 + 12
    assert all(0 < norm < 1e3 for norm in norms)
