"""Score what a run started from and what each of its stages made, for one table."""

import json
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from sentence_transformers import SentenceTransformer

from llm2comp import backbone, baselines, release
from llm2comp.errors import UserError
from llm2comp.evaluation import runner
from llm2comp.recipe import Recipe
from llm2comp.stages.folders import FOLDERS

LABELS = {
    "pretext": "after stage 1",
    "unsupervised": "after UCL",
    "supervised": "after SCL",
}
"""How tables call the encoder after each stage."""


def score_run(
    run: Recipe, out: Path, released: Sequence[str] = ()
) -> dict[str, list[runner.Score]]:
    """Score the recipe's baselines, the encoder after each stage, and released encoders.

    Args:
        run: its ``evaluation`` says on what, and with which baselines.
        out: the folder of the finished run; results are also kept in ``out/scores``.
        released: names of released encoders to add as further rows.

    Returns:
        Scores by row, in the order of the table.
    """
    rows: dict[str, list[runner.Score]] = {}

    def add(name: str, model: SentenceTransformer) -> None:
        settings = run.evaluation
        rows[name] = runner.evaluate(
            model, name, settings.tasks, settings.quick, output=out / "scores"
        )

    for name in run.evaluation.baselines:
        add(name, baselines.build(name, backbone_folder(run.backbone.name)))
    for stage in run.stages:
        add(LABELS[stage.stage], SentenceTransformer(str(out / FOLDERS[stage.stage])))
    for name in released:
        add(name, release.load_model(name))
    return rows


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
