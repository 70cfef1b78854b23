"""Trains the small backbone: in each precision, and killed and continued."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from unittest import mock

import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers.utils import is_flash_attn_2_available

from gpucheck.rows import Found, NotRunError, Recorder
from gpucheck.workshop import Workshop
from llm2comp.recipe import STAGE_FOLDERS, Recipe
from llm2comp.training import pipeline
from llm2comp.training.monitoring.run_log import read_lines
from llm2comp.training.run_folder import LOG
from llm2comp.training.trainer import AdapterCheckpoints

EXACT, SCORED = "float32", "scored"
SCRIPT = Path(__file__).parents[1] / "gpu_check.py"
ENDS = 3
"""Steps at the beginning and at the end whose mean losses are compared."""
FIRST_STEP, FIRST_STAGE, LATER_STAGE = 0.02, 0.1, 0.25
"""Largest relative difference of losses in bfloat16 from those in float32: of the very first step,
where the weights are the same; of the steps of stage 1 on average; and of those of a later stage,
which starts from what the run itself has trained. Steps in which the loss falls steeply differ by
a fifth."""
SMALL_LOSS = 0.25
"""Differences are relative to losses of at least this. A smaller one is mostly rounding."""
RESUMED = 1e-3
"""Largest difference of a continued run, relative to what was trained. Some kernels of a GPU add in
another order each time. A lost moment of the optimiser makes a difference of a tenth and more."""
KILLED_AT = 8
"""Step after which a run is killed; its checkpoint of this step is not written."""


def float32(workshop: Workshop, record: Recorder) -> None:
    """Train in float32, which the other precisions are compared with."""
    _train(workshop, record, EXACT, "backbone.dtype=float32", compared=False)


def bfloat16(workshop: Workshop, record: Recorder) -> None:
    """Train in bfloat16, with the attention of PyTorch."""
    _train(workshop, record, "bfloat16", "backbone.dtype=bfloat16")


def four_bits(workshop: Workshop, record: Recorder) -> None:
    """Train on weights in 4 bits (QLoRA), if bitsandbytes is installed."""
    if find_spec("bitsandbytes") is None:
        record.check("stages train", _without, "bitsandbytes")
        return
    overrides = ("backbone.dtype=bfloat16", "backbone.load_in_4bit=true")
    # The weights are others, so that the losses are not compared.
    _train(workshop, record, "4 bits", *overrides, compared=False)


def flash(workshop: Workshop, record: Recorder) -> None:
    """Train in bfloat16 with flash attention, if it is installed."""
    if not is_flash_attn_2_available():
        record.check("stages train", _without, "flash-attn")
        return
    attention = "backbone.attn_implementation=flash_attention_2"
    _train(workshop, record, "flash", "backbone.dtype=bfloat16", attention)


def _without(package: str) -> Found:
    raise NotRunError(f"the package {package} is not installed")


def _train(
    workshop: Workshop, record: Recorder, name: str, *overrides: str, compared: bool = True
) -> None:
    """Train the three stages, and stage 3 once more with scores, and look at the losses."""
    out = workshop.folder / name
    scored = workshop.folder / f"{name}-{SCORED}"
    record.check("stages train", _run, workshop.recipe(*overrides), out)
    base = out / STAGE_FOLDERS["unsupervised"]
    record.check("stage 3 trains with scores", _run_scored, workshop, base, scored, overrides)
    for label, run in [*((stage, name) for stage in STAGE_FOLDERS), (SCORED, scored.name)]:
        record.check(f"the loss falls: {label}", _falls, workshop, run, label)
        if compared:
            exact = EXACT if label != SCORED else f"{EXACT}-{SCORED}"
            agree = f"losses are those of float32: {label}"
            record.check(agree, _agree, workshop.folder / run, workshop.folder / exact, label)


def _run(recipe: Recipe, out: Path) -> Found:
    pipeline.train(recipe, out, Console(quiet=True))
    steps = ", ".join(f"{stage.steps} of {stage.stage}" for stage in recipe.stages)
    return Found(f"steps: {steps}")


def _run_scored(workshop: Workshop, base: Path, out: Path, overrides: tuple[str, ...]) -> Found:
    if not base.exists():
        raise NotRunError("stage 2 left no encoder to start from")
    return _run(workshop.supervised_from(base, "scored.jsonl", *overrides), out)


def losses(out: Path, label: str) -> list[float]:
    """Return the loss of each step of a stage.

    Args:
        out: folder of the run.
        label: name of the stage, or `SCORED` for stage 3 with scores.

    Raises:
        NotRunError: if the stage did not run.
    """
    stage = "supervised" if label == SCORED else label
    events = [event for _, event in read_lines(out / LOG)] if (out / LOG).exists() else []
    found = [event["loss"] for event in events if event.get("stage") == stage and "loss" in event]
    if not found:
        raise NotRunError(f"no step of {stage} was logged in {out.name}")
    return found


def _falls(workshop: Workshop, run: str, label: str) -> Found:
    found = losses(workshop.folder / run, label)
    if len(found) != workshop.sizes.steps:
        return Found(f"{len(found)} of {workshop.sizes.steps} steps were logged", passed=False)
    first, last = mean(found[:ENDS]), mean(found[-ENDS:])
    return Found(
        f"{first:.3f} to {last:.3f}",
        passed=last < first or not workshop.learns,
        limit=f"the last {ENDS} steps below the first" if workshop.learns else "",
        numbers={"first": first, "last": last},
    )


def _agree(run: Path, exact: Path, label: str) -> Found:
    """Compare the losses of two runs."""
    pairs = list(zip(losses(run, label), losses(exact, label), strict=True))
    apart = [abs(one - other) / max(abs(other), SMALL_LOSS) for one, other in pairs]
    is_first = label == "pretext"
    limit = FIRST_STAGE if is_first else LATER_STAGE
    first = f"{FIRST_STEP:.0%} in the first step, " if is_first else ""
    return Found(
        f"{apart[0]:.2%} apart in the first step, {mean(apart):.2%} on average",
        passed=mean(apart) <= limit and (apart[0] <= FIRST_STEP or not is_first),
        limit=f"{first}{limit:.0%} on average",
        numbers={"first": apart[0], "mean": mean(apart)},
    )


def resume(workshop: Workshop, record: Recorder) -> None:
    """Kill a run in stage 1 and one in stage 3, continue them, and compare with whole runs."""
    for stage in ("pretext", "supervised"):
        record.check(f"killed and continued: {stage}", _resume, workshop, stage)


def _resume(workshop: Workshop, stage: str) -> Found:
    recipe = _interrupted_recipe(workshop, stage)
    out = workshop.folder / f"killed-{stage}"
    command = [sys.executable, str(SCRIPT), "--folder", str(workshop.folder), "--part"]
    small = [] if workshop.sizes.backbone else ["--stand-in"]
    done = subprocess.run(
        [*command, f"killed-{stage}", *small], capture_output=True, text=True, check=False
    )
    if done.returncode != -signal.SIGKILL:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        return Found(f"the run to kill ended with {done.returncode}: {said}", passed=False)
    if (out / STAGE_FOLDERS[stage]).exists():
        return Found("the run to kill had ended before", passed=False)
    whole = workshop.folder / f"whole-{stage}"
    with _deterministic():
        pipeline.train(recipe, out, Console(quiet=True))
        pipeline.train(recipe, whole, Console(quiet=True))
    most = trained_difference(out / STAGE_FOLDERS[stage], whole / STAGE_FOLDERS[stage])
    return Found(
        "bit for bit the same" if most == 0 else f"{most:.1e} of what was trained apart",
        passed=most <= RESUMED,
        limit=f"{RESUMED:g}",
        numbers={"difference": most},
    )


def killed(workshop: Workshop, stage: str) -> None:
    """Train until a run kills itself in the middle of a stage. It does not return.

    Args:
        workshop: where.
        stage: which stage it trains.
    """
    save = AdapterCheckpoints._save_checkpoint

    def save_or_die(trainer: AdapterCheckpoints, *arguments: object, **options: object) -> None:
        if trainer.state.global_step >= KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)
        save(trainer, *arguments, **options)

    recipe = _interrupted_recipe(workshop, stage)
    with _deterministic(), mock.patch.object(AdapterCheckpoints, "_save_checkpoint", save_or_die):
        pipeline.train(recipe, workshop.folder / f"killed-{stage}", Console(quiet=True))


def _interrupted_recipe(workshop: Workshop, stage: str) -> Recipe:
    """Return a recipe of one stage with dropout, whose random state a continued run must restore.

    Raises:
        NotRunError: if there is no encoder to start stage 3 from.
    """
    overrides = ["backbone.dtype=float32", f"{stage}.lora.dropout=0.1"]
    if stage == "pretext":
        recipe = workshop.recipe(*overrides)
        return recipe.model_copy(update={"stages": recipe.stages[:1]})
    base = workshop.folder / EXACT / STAGE_FOLDERS["unsupervised"]
    if not base.exists():
        raise NotRunError(f"the part {EXACT} left no encoder after stage 2")
    return workshop.supervised_from(base, "pairs.jsonl", *overrides)


def trained_difference(first: Path, second: Path) -> float:
    """Return how far apart what two runs trained is, relative to its size.

    LoRA's `B` begins with zeros, so that it is what was trained. LoRA's `A` and the memory
    embeddings are left out, because most of them is as it began.

    Args:
        first: encoder folder.
        second: encoder folder of a run of the same recipe.
    """
    one, other = (load_file(f / "adapter" / "adapter_model.safetensors") for f in (first, second))
    names = [name for name in one if "lora_B" in name]
    apart = torch.cat([(one[name] - other[name]).flatten().double() for name in names])
    size = torch.cat([other[name].flatten().double() for name in names])
    return float(apart.norm() / size.norm())


@contextmanager
def _deterministic() -> Iterator[None]:
    """Let PyTorch take kernels that add in the same order each time, where it has one."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
