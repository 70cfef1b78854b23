"""What a report shows, collected from run folders, encoders and the sample they read."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
from sentence_transformers import SentenceTransformer

from llm2comp import release, scores
from llm2comp.analysis import analyze
from llm2comp.analysis.analyze import Analysis
from llm2comp.analysis.sample import Sample
from llm2comp.encode import embed
from llm2comp.errors import UserError
from llm2comp.evaluation.store import Score, Store
from llm2comp.hardware import compute_dtype
from llm2comp.recipe import Recipe, load_recipe
from llm2comp.stages import chain
from llm2comp.stages.folders import FOLDERS

NEAREST = 3
"""Neighbours shown a query and encoder."""


@dataclass(frozen=True)
class Run:
    """A run folder: its recipe, its events and its scores."""

    folder: Path
    recipe: Recipe
    events: list[dict[str, Any]]
    scores: scores.Scores

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """Read a run folder.

        Raises:
            UserError: if a file of it is broken.
        """
        log = folder / chain.LOG
        events = []
        for number, line in enumerate(log.read_text(encoding="utf-8").splitlines(), 1):
            try:
                events.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise UserError(f"{log}:{number}: not JSON; the run is damaged") from error
        return cls(folder, load_recipe(folder / chain.RECIPE), events, scores.read_scores(folder))

    @property
    def encoders(self) -> dict[str, Path]:
        """The encoder folders that are there, by the label of their stage."""
        found = {
            scores.LABELS[stage.stage]: self.folder / FOLDERS[stage.stage]
            for stage in self.recipe.stages
        }
        return {label: folder for label, folder in found.items() if folder.is_dir()}

    @property
    def reproduce(self) -> str:
        """The recipe as it was run, in YAML, which `llm2comp train` takes."""
        return (self.folder / chain.RECIPE).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Encoder:
    """One encoder of a report.

    Attributes:
        name: of its row.
        analysis: its measures.
        vectors: ``(texts, dimension)`` of the sample's texts.
        neighbours: for each query, the texts found and their cosines, best first.
        lineage: of an encoder of ours.
    """

    name: str
    analysis: Analysis
    vectors: npt.NDArray[np.float32]
    neighbours: list[list[tuple[float, str]]]
    lineage: dict[str, Any] | None


@dataclass(frozen=True)
class Content:
    """All that a report shows.

    Attributes:
        title: of the page.
        sample: texts that every encoder read.
        queries: what was searched for in them.
        encoders: in the order of the table.
        rows: scores by row, encoders and baselines.
        run: the run, if it is one.
        note: what is to be said of the rows.
    """

    title: str
    sample: Sample
    queries: Sequence[str]
    encoders: list[Encoder]
    rows: Mapping[str, Sequence[Score]]
    run: Run | None = None
    note: str = ""


def gather(
    names: Sequence[str], sample: Sample, queries: Sequence[str], batch_size: int = 32
) -> Content:
    """Load and read everything that a report shows.

    Args:
        names: one run folder; or encoders, as :func:`llm2comp.release.load_model` takes them.
        sample: texts to analyse, to map and to search in.
        queries: to search for.
        batch_size: texts of 64 tokens at once; it changes speed, not the report.

    Raises:
        UserError: if a run is mixed with other names, or an encoder cannot be loaded.
    """
    runs = [name for name in names if (Path(name) / chain.RECIPE).is_file()]
    if runs and len(names) > 1:
        raise UserError(f"{runs[0]} is a run; report it alone, or name encoder folders within it")
    run = Run.read(Path(runs[0])) if runs else None
    named = {label: str(folder) for label, folder in run.encoders.items()} if run else {}
    named = named or {name: name for name in names}
    encoders = []
    for label, source in named.items():
        model = release.load_model(source, compute_dtype("auto"))
        encoders.append(
            _read(model, label, sample, queries, release.lineage_of(source), batch_size)
        )
    rows = run.scores if run else _stored(names)
    title = str(run.folder) if run else ", ".join(names)
    return Content(title, sample, queries, encoders, rows, run)


def _read(
    model: SentenceTransformer,
    name: str,
    sample: Sample,
    queries: Sequence[str],
    lineage: dict[str, Any] | None,
    batch_size: int,
) -> Encoder:
    start = perf_counter()
    encoded = analyze.encode(model, name, sample, batch_size)
    analysis = analyze.measure(name, sample.note, encoded, start)
    vectors = np.asarray(encoded.vectors, dtype=np.float32)
    cosines = embed(model, list(queries), batch_size, "query") @ vectors.T
    nearest = np.argsort(-cosines, axis=1)[:, :NEAREST]
    found = [
        [(float(row[place]), sample.texts[place]) for place in places]
        for row, places in zip(cosines, nearest, strict=True)
    ]
    return Encoder(name, analysis, vectors, found, lineage)


def _stored(names: Sequence[str]) -> scores.Scores:
    """Return the kept scores of encoders, whole sets before quick ones."""
    rows: scores.Scores = {}
    for one in sorted(Store().all(), key=lambda stored: stored.score.quick):
        known = {score.task for score in rows.get(one.model, [])}
        if one.model in names and one.score.task not in known:
            rows.setdefault(one.model, []).append(one.score)
    return rows
