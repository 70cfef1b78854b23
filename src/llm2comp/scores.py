"""Score what a run started from and what each of its stages made, for one table."""

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from huggingface_hub import snapshot_download
from sentence_transformers import SentenceTransformer

from llm2comp import backbone, baselines, release
from llm2comp.cache import whole_file
from llm2comp.errors import UserError
from llm2comp.evaluation import runner, suites
from llm2comp.hardware import compute_dtype
from llm2comp.recipe import Recipe
from llm2comp.stages.folders import FOLDERS

LABELS = {
    "pretext": "after stage 1",
    "unsupervised": "after UCL",
    "supervised": "after SCL",
}
"""How tables call the encoder after each stage."""
SCORES = "scores.json"

Scores = dict[str, list[runner.Score]]
"""Scores by the name of a row."""
Models = dict[str, Callable[[], SentenceTransformer]]
"""What loads the model of a row, by the row's name."""


def score_run(run: Recipe, out: Path) -> Scores:
    """Score the recipe's baselines and the encoder after each stage.

    They compute in the recipe's ``backbone.dtype``, as training does. Rows are
    kept in ``out/scores.json`` as they come, and are not computed twice.

    Args:
        run: its ``evaluation`` says on what, and with which baselines.
        out: the folder of the finished run.

    Returns:
        Scores by row, in the order of the table.
    """
    settings = run.evaluation
    kept = read_scores(out)
    rows: Scores = {}
    for name, load in (baseline_models(run) | stage_models(run, out)).items():
        rows[name] = kept.get(name, [])
        if [(s.task, s.quick) for s in rows[name]] != [(t, settings.quick) for t in settings.tasks]:
            chosen = suites.tasks(settings.tasks, quick=settings.quick)
            rows[name] = runner.evaluate(load(), name, chosen)
            with whole_file(out / SCORES) as file:
                as_dicts = {row: [asdict(s) for s in found] for row, found in rows.items()}
                file.write_text(json.dumps(as_dicts, indent=2) + "\n", encoding="utf-8")
    return rows


def baseline_models(run: Recipe) -> Models:
    """Return what loads each of the recipe's baselines, in the precision of training."""
    dtype = compute_dtype(run.backbone.dtype)

    def load(name: str) -> SentenceTransformer:
        return baselines.build(name, backbone_folder(run.backbone.name), dtype)

    return {name: partial(load, name) for name in run.evaluation.baselines}


def stage_models(run: Recipe, out: Path) -> Models:
    """Return what loads the encoder after each stage of a finished run, by the stage's label."""
    dtype = compute_dtype(run.backbone.dtype)
    folders = {LABELS[stage.stage]: str(out / FOLDERS[stage.stage]) for stage in run.stages}
    return {label: partial(release.load_model, folder, dtype) for label, folder in folders.items()}


def read_scores(folder: Path) -> Scores:
    """Return the rows that ``scores.json`` of a run or a release holds; none if it is not there."""
    if not (folder / SCORES).exists():
        return {}
    rows = json.loads((folder / SCORES).read_text(encoding="utf-8"))
    return {name: [runner.Score(**score) for score in found] for name, found in rows.items()}


def backbone_folder(name: str) -> Path:
    """Return the local folder of a backbone, downloading one that is a hub id.

    Raises:
        UserError: if the hub has no such model or cannot be reached.
    """
    source = backbone.resolve(name)
    if Path(source).is_dir():
        return Path(source)
    patterns = ["*.json", "*.safetensors", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(source, allow_patterns=patterns))
    except Exception as error:  # whichever HTTP library is below, it has its own exceptions
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"backbone {name!r} cannot be downloaded: {reason}") from error


def costs(run: Recipe, out: Path) -> dict[str, dict[str, str]]:
    """Return the columns of what each stage took: training samples and time."""
    samples = {LABELS[s.stage]: f"{s.steps * s.batch_size:,}" for s in run.stages}
    events = map(json.loads, (out / "run.jsonl").read_text(encoding="utf-8").splitlines())
    seconds = {
        LABELS[event["stage"]]: f"{event['seconds']:.0f} s"
        for event in events
        if event.get("done") and "seconds" in event
    }
    return {"samples": samples, "time": seconds}
