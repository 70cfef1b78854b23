"""Score what a run started from and what each of its stages made, for one table."""

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from sentence_transformers import SentenceTransformer

from llm2comp.evaluation import baselines, runner, suites
from llm2comp.inference.load import load
from llm2comp.recipe import STAGE_FOLDERS, Recipe
from llm2comp.training.run_folder import SCORES, STAGE_LABELS, Scores, read_scores
from llm2comp.utils.files import atomic_file

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
    for name, load_model in (baseline_models(run) | stage_models(run, out)).items():
        rows[name] = kept.get(name, [])
        if [(s.task, s.quick) for s in rows[name]] != [(t, settings.quick) for t in settings.tasks]:
            chosen = suites.tasks(settings.tasks, quick=settings.quick)
            rows[name] = runner.evaluate(load_model(), name, chosen)
            with atomic_file(out / SCORES) as file:
                as_dicts = {row: [asdict(s) for s in found] for row, found in rows.items()}
                file.write_text(json.dumps(as_dicts, indent=2) + "\n", encoding="utf-8")
    return rows


def baseline_models(run: Recipe) -> Models:
    """Return what loads each of the recipe's baselines, in the precision of training."""
    backbone = run.backbone
    return {
        name: partial(baselines.load_baseline, name, backbone.name, backbone.dtype)
        for name in run.evaluation.baselines
    }


def stage_models(run: Recipe, out: Path) -> Models:
    """Return what loads the encoder after each stage of a finished run, by the stage's label."""
    folders = {
        STAGE_LABELS[stage.stage]: str(out / STAGE_FOLDERS[stage.stage]) for stage in run.stages
    }
    return {label: partial(load, folder, run.backbone.dtype) for label, folder in folders.items()}
