"""What a report shows, collected from run folders, encoders and the sample they read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import numpy.typing as npt
from sentence_transformers import SentenceTransformer

from llm2comp.analysis import measure
from llm2comp.analysis.measure import Analysis
from llm2comp.data.sample import Sample
from llm2comp.errors import UserError
from llm2comp.evaluation.store import ResultStore, Score
from llm2comp.inference.embed import embed
from llm2comp.inference.load import load
from llm2comp.model import released
from llm2comp.model.lineage import Lineage
from llm2comp.training import run_folder
from llm2comp.training.run_folder import Run
from llm2comp.utils.choices import Precision

NEAREST = 3
"""Neighbours shown a query and encoder."""


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
    lineage: Lineage | None


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
    names: Sequence[str],
    sample: Sample,
    queries: Sequence[str],
    batch_size: int = 32,
    dtype: Precision = "auto",
) -> Content:
    """Load and read everything that a report shows.

    Args:
        names: one run folder; or encoders, as :func:`llm2comp.inference.load.load` takes them.
        sample: texts to analyse, to map and to search in.
        queries: to search for.
        batch_size: texts of 64 tokens at once; it changes speed, not the report.
        dtype: as :func:`llm2comp.inference.load.load` takes it.

    Raises:
        UserError: if a run is mixed with other names, or an encoder cannot be loaded.
    """
    runs = [name for name in names if (Path(name) / run_folder.RECIPE).is_file()]
    if runs and len(names) > 1:
        raise UserError(f"{runs[0]} is a run; report it alone, or name encoder folders within it")
    run = Run.read(Path(runs[0])) if runs else None
    named = {label: str(folder) for label, folder in run.encoders.items()} if run else {}
    named = named or {name: name for name in names}
    encoders = []
    for label, source in named.items():
        model = load(source, dtype)
        encoders.append(
            _read(model, label, sample, queries, released.lineage_of(source), batch_size)
        )
    rows = run.scores if run else _stored(names)
    title = str(run.folder) if run else ", ".join(names)
    return Content(title, sample, queries, encoders, rows, run)


def _read(
    model: SentenceTransformer,
    name: str,
    sample: Sample,
    queries: Sequence[str],
    lineage: Lineage | None,
    batch_size: int,
) -> Encoder:
    start = perf_counter()
    encoded = measure.encode(model, name, sample, batch_size)
    analysis = measure.measure(name, sample.note, encoded, start)
    vectors = np.asarray(encoded.vectors, dtype=np.float32)
    cosines = embed(model, list(queries), batch_size, "query") @ vectors.T
    nearest = np.argsort(-cosines, axis=1)[:, :NEAREST]
    found = [
        [(float(row[place]), sample.texts[place]) for place in places]
        for row, places in zip(cosines, nearest, strict=True)
    ]
    return Encoder(name, analysis, vectors, found, lineage)


def _stored(names: Sequence[str]) -> run_folder.Scores:
    """Return the kept scores of encoders, whole sets before quick ones."""
    rows: run_folder.Scores = {}
    for one in sorted(ResultStore().all(), key=lambda stored: stored.score.quick):
        known = {score.task for score in rows.get(one.model, [])}
        if one.model in names and one.score.task not in known:
            rows.setdefault(one.model, []).append(one.score)
    return rows
