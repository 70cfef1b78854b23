"""Collect the content of a report from a run folder or encoders, and from a sample of texts."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import numpy.typing as npt
from sentence_transformers import SentenceTransformer

from llm2comp.analysis import measure
from llm2comp.analysis.measure import Analysis, Embeddings, Encoded
from llm2comp.analysis.reading.capacity import Capacity
from llm2comp.analysis.reading.texts import Reading, read
from llm2comp.data.sample import Sample
from llm2comp.errors import UserError
from llm2comp.evaluation.store import ResultStore, Score
from llm2comp.inference.embed import embed, prompt_of
from llm2comp.inference.load import load
from llm2comp.inference.reading.backbone import READABLE
from llm2comp.inference.reading.reader import Reader
from llm2comp.inference.vector_format import to_unit_length
from llm2comp.model import released
from llm2comp.model.lineage import Lineage
from llm2comp.training import run_folder
from llm2comp.training.run_folder import Run
from llm2comp.utils.choices import Precision
from llm2comp.utils.files import user_path

NEAREST = 3
"""Number of texts that are shown per query and encoder."""
READ_TOKENS = 128
"""Tokens of the text whose memory is read."""


@dataclass(frozen=True)
class Encoder:
    """One encoder of a report.

    Attributes:
        name: name of its row.
        analysis: its measures.
        embeddings: embeddings of the texts of the sample, `(texts, dimension)`.
        neighbours: for each query, the cosines and texts that were found, best first. As in
            `llm2comp search`, queries have the query prompt and texts the document prompt.
        lineage: content of its `llm2comp.json`; `None` if it has none.
    """

    name: str
    analysis: Analysis
    embeddings: npt.NDArray[np.float32]
    neighbours: list[list[tuple[float, str]]]
    lineage: Lineage | None


@dataclass(frozen=True)
class Content:
    """Everything that a report shows.

    Attributes:
        title: title of the page.
        sample: texts that every encoder encoded.
        queries: queries that were searched for in these texts, or in the positives of pairs.
        encoders: the encoders, in the order of the table.
        rows: scores by name of the encoder or baseline.
        run: the run; `None` if the report is about encoders.
        note: a remark about the scores.
        reading: what was read of the memory of one text, with the first encoder that has memory
            to read; `None` if there is none, or its language model cannot be had.
        unread: why it cannot be had; empty if it can.
        capacities: how much the memory of encoders holds, if it was measured.
    """

    title: str
    sample: Sample
    queries: Sequence[str]
    encoders: list[Encoder]
    rows: Mapping[str, Sequence[Score]]
    run: Run | None = None
    note: str = ""
    reading: Reading | None = None
    unread: str = ""
    capacities: Sequence[Capacity] = ()


def gather(
    names: Sequence[str],
    sample: Sample,
    queries: Sequence[str],
    batch_size: int = 32,
    dtype: Precision = "auto",
) -> Content:
    """Load encoders and scores, and encode the sample with each encoder.

    Args:
        names: one run folder, or encoders as `llm2comp.load` takes them.
        sample: texts for the measures, the map and the searches.
        queries: queries to search for.
        batch_size: number of texts of 64 tokens per batch; it changes speed, not the report.
        dtype: as in `llm2comp.load`.

    Raises:
        UserError: if a run is mixed with other names, or an encoder cannot be loaded.
    """
    runs = [name for name in names if (user_path(name) / run_folder.RECIPE).is_file()]
    if runs and len(names) > 1:
        raise UserError(f"{runs[0]} is a run; report it alone, or name encoder folders within it")
    run = Run.read(user_path(runs[0])) if runs else None
    sources = {label: str(folder) for label, folder in run.encoders.items()} if run else {}
    sources = sources or {name: name for name in names}
    encoders = []
    for label, source in sources.items():
        model = load(source, dtype)
        lineage = released.lineage_of(source)
        encoders.append(_encoder(model, label, sample, queries, lineage, batch_size))
    rows = run.scores if run else _stored_scores(encoders)
    title = str(run.folder) if run else ", ".join(names)
    reading, unread = None, ""
    try:
        reading = _reading(sources, encoders, sample, dtype, run)
    except UserError as error:  # the rest of the report needs no language model
        unread = str(error)
    return Content(title, sample, queries, encoders, rows, run, reading=reading, unread=unread)


def _reading(
    sources: Mapping[str, str],
    encoders: Sequence[Encoder],
    sample: Sample,
    dtype: Precision,
    run: Run | None,
) -> Reading | None:
    """Read the memory of the first text that is long enough, with the first encoder that can.

    Raises:
        UserError: if its language model cannot be had.
    """
    for encoder in encoders:
        lineage = encoder.lineage
        if lineage is None or lineage.prompt_format != READABLE:
            continue
        # The lineage has only the last part of a local path, and the recipe has all of it.
        local = run.recipe.backbone.name if run and run.recipe.base is None else None
        reader = Reader.open(sources[encoder.name], dtype, local)
        tokens = reader.tokens(sample.texts)
        ids = next((ids for ids in tokens if len(ids) >= READ_TOKENS), max(tokens, key=len))
        text = reader.decode(ids[:READ_TOKENS])
        return dataclasses.replace(read(reader, [text]), model=encoder.name)
    return None


def _encoder(
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
    embeddings = to_unit_length(np.asarray(encoded.embeddings, dtype=np.float32))
    texts, documents = _documents(model, sample, encoded, batch_size)
    neighbours = _search(model, queries, texts, documents, batch_size)
    return Encoder(name, analysis, embeddings, neighbours, lineage)


def _documents(
    model: SentenceTransformer, sample: Sample, encoded: Encoded, batch_size: int
) -> tuple[list[str], Embeddings]:
    """Return the texts that are searched, and their embeddings as documents.

    Of pairs these are the positives. What `measure.encode` gave is used again if it is the same.
    """
    if encoded.positives is not None:
        return sample.positives, encoded.positives
    if prompt_of(model, "document"):
        return sample.texts, embed(model, sample.texts, batch_size, "document")
    return sample.texts, encoded.embeddings


def _search(
    model: SentenceTransformer,
    queries: Sequence[str],
    texts: Sequence[str],
    documents: Embeddings,
    batch_size: int,
) -> list[list[tuple[float, str]]]:
    """Return the cosines and texts that are nearest to each query, best first."""
    documents = to_unit_length(np.asarray(documents, dtype=np.float32))
    cosines = to_unit_length(embed(model, list(queries), batch_size, "query")) @ documents.T
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :NEAREST]
    return [
        [(float(row[index]), texts[index]) for index in indices]
        for row, indices in zip(cosines, nearest, strict=True)
    ]


def _stored_scores(encoders: Sequence[Encoder]) -> run_folder.Scores:
    """Return the stored scores of encoders. A quick score is used only if there is no other.

    A name may have been that of another encoder, so the lineage is compared too. Encoders of others
    have none.
    """
    lineages = {encoder.name: encoder.lineage for encoder in encoders}
    rows: run_folder.Scores = {}
    for result in sorted(ResultStore().all(), key=lambda result: result.score.quick):
        name, task = result.model, result.score.task
        if name not in lineages or result.lineage != lineages[name]:
            continue
        if task not in {score.task for score in rows.get(name, [])}:
            rows.setdefault(name, []).append(result.score)
    return rows
