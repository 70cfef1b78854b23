"""What a run folder holds: recipe, log, scores, encoders."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm2comp.errors import UserError
from llm2comp.evaluation import store
from llm2comp.recipe import STAGE_FOLDERS, Recipe, load_recipe

MODEL = "model"
RECIPE = "recipe.yaml"
LOG = "run.jsonl"
SCORES = "scores.json"
STAGE_LABELS = {
    "pretext": "after stage 1",
    "unsupervised": "after UCL",
    "supervised": "after SCL",
}


"""How tables call the encoder after each stage."""


Scores = dict[str, list[store.Score]]


"""Scores by the name of a row."""


def read_scores(folder: Path) -> Scores:
    """Return the rows that ``scores.json`` of a run or a release holds; none if it is not there."""
    if not (folder / SCORES).exists():
        return {}
    rows = json.loads((folder / SCORES).read_text(encoding="utf-8"))
    return {name: [store.Score(**score) for score in found] for name, found in rows.items()}


def costs(run: Recipe, out: Path) -> dict[str, dict[str, str]]:
    """Return the columns of what each stage took: training samples and time."""
    samples = {STAGE_LABELS[s.stage]: f"{s.steps * s.batch_size:,}" for s in run.stages}
    events = map(json.loads, (out / "run.jsonl").read_text(encoding="utf-8").splitlines())
    seconds = {
        STAGE_LABELS[event["stage"]]: f"{event['seconds']:.0f} s"
        for event in events
        if event.get("done") and "seconds" in event
    }
    return {"samples": samples, "time": seconds}


@dataclass(frozen=True)
class Run:
    """A run folder: its recipe, its events and its scores."""

    folder: Path
    recipe: Recipe
    events: list[dict[str, Any]]
    scores: Scores

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """Read a run folder.

        Raises:
            UserError: if a file of it is broken.
        """
        log = folder / LOG
        events = []
        for number, line in enumerate(log.read_text(encoding="utf-8").splitlines(), 1):
            try:
                events.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise UserError(f"{log}:{number}: not JSON; the run is damaged") from error
        return cls(folder, load_recipe(folder / RECIPE), events, read_scores(folder))

    @property
    def encoders(self) -> dict[str, Path]:
        """The encoder folders that are there, by the label of their stage."""
        found = {
            STAGE_LABELS[stage.stage]: self.folder / STAGE_FOLDERS[stage.stage]
            for stage in self.recipe.stages
        }
        return {label: folder for label, folder in found.items() if folder.is_dir()}

    @property
    def reproduce(self) -> str:
        """The recipe as it was run, in YAML, which `llm2comp train` takes."""
        return (self.folder / RECIPE).read_text(encoding="utf-8")
