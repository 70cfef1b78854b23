"""The labels of a teacher: computed once, written beside the rows, and read from there."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset, DatasetDict, List, Value, concatenate_datasets
from sentence_transformers import SentenceTransformer

from llm2comp.data.drawn.pair_file import WRITTEN_TOGETHER, negatives_of, texts_of
from llm2comp.data.drawn.rows import arrow_writer
from llm2comp.data.sources import NEGATIVE, SCORE
from llm2comp.errors import UserError, counted
from llm2comp.inference.load import load_in
from llm2comp.inference.mining.reranker import is_reranker, load_reranker
from llm2comp.inference.vector_format import to_unit_length
from llm2comp.model.prompt_format import own_prompts
from llm2comp.recipe_parts import DataSource, dataset_names
from llm2comp.training.losses.distillation import LABEL
from llm2comp.utils.checksums import require_unchanged, write_checksums
from llm2comp.utils.files import atomic_folder
from llm2comp.utils.progress import text_progress, track_texts

logger = logging.getLogger("llm2comp")

BATCH = 32
"""Texts per batch of a teacher."""

Vectors = npt.NDArray[np.float32]


def with_labels(
    data: DatasetDict,
    sources: Sequence[DataSource],
    folder: Path,
    student: Path,
    row_prompts: Sequence[Sequence[str]] = (),
    *,
    trust_remote_code: bool = False,
) -> DatasetDict:
    """Return rows with the labels of the teachers that their sources name.

    Args:
        data: the rows of each source, as `llm2comp.data.drawn.pair_file` writes them.
        sources: the sources.
        folder: where labels are written; if it exists, they are read from it.
        student: the encoder that learns.
        row_prompts: for each source, the prompts that its rows have before their anchors.
        trust_remote_code: run the Python code that comes with the student, if it has any.

    Returns:
        The rows of a source with a teacher have its labels, and no lists of negatives: each text is
        in a column of its own. Other rows are as they were.

    Raises:
        UserError: if a teacher cannot be loaded, or rows do not have what it scores.
    """
    named = zip(dataset_names(sources), sources, strict=True)
    teachers = {name: source.teacher for name, source in named if source.teacher}
    if not teachers:
        return data
    taught = {name: _columns(name, data[name]) for name in teachers}
    own = dict(zip(dataset_names(sources), own_prompts(sources, row_prompts), strict=True))
    if not folder.exists():
        with atomic_folder(folder) as partial:
            for place, (name, part) in enumerate(taught.items()):
                # Anchors of a source with prompts of its own have them already.
                prompt = "" if own[name] else None
                found = _labels(name, part, teachers[name], student, prompt, code=trust_remote_code)
                _write(partial / _file(place), found)
            write_checksums(partial)
    require_unchanged(folder)
    rows = dict(data)
    for place, (name, part) in enumerate(taught.items()):
        labels = Dataset.from_file(str(folder / _file(place)))
        rows[name] = concatenate_datasets([part, labels], axis=1)
    return DatasetDict(rows)


def _file(place: int) -> str:
    return f"{place}.arrow"


def _columns(name: str, part: Dataset) -> Dataset:
    """Return rows whose columns are texts: anchor, positive, and each negative by its number.

    Raises:
        UserError: if rows have scores, or different numbers of negatives.
    """
    if SCORE in part.column_names:
        raise UserError(f"{name}: it has both scores and a teacher; use one of them")
    fewest, most = negatives_of(part)
    if fewest < most:
        raise UserError(
            f"{name}: its rows have {fewest} to {most} negatives, and a teacher needs as many in "
            "each row; mine as many for all of them, or put rows of one kind into a source"
        )
    texts = part.select_columns(["anchor", "positive"])
    if most:
        negatives = [texts_of(value) for value in part[NEGATIVE]]
        numbered = {f"{NEGATIVE}_{i + 1}": [row[i] for row in negatives] for i in range(most)}
        texts = concatenate_datasets([texts, Dataset.from_dict(numbered)], axis=1)
    return texts


def _labels(
    name: str, part: Dataset, teacher: str, student: Path, prompt: str | None, *, code: bool
) -> tuple[Any, Iterator[list[Any]]]:
    """Return the type of the labels of a source, and the label of each row.

    Args:
        name: of the source.
        part: its rows.
        teacher: a cross-encoder or an encoder.
        student: the encoder that learns.
        prompt: what a model puts before anchors; None for its own prompt.
        code: whether to run code that comes with the student.
    """
    if is_reranker(teacher):
        return List(Value("float32")), _scores(name, part, teacher, prompt)
    vector = List(Value("float32"))
    return List(vector), _vectors(part, teacher, student, prompt, code=code)


def _write(file: Path, labels: tuple[Any, Iterator[list[Any]]]) -> None:
    kind, values = labels
    with arrow_writer(file, {LABEL: kind}, WRITTEN_TOGETHER) as writer:
        for value in values:
            writer.write({LABEL: value})


def _scores(name: str, part: Dataset, teacher: str, prompt: str | None) -> Iterator[list[float]]:
    """Yield what a cross-encoder says of each row's positive and negatives, as logits.

    Raises:
        UserError: if rows have no negatives, or a score is not finite.
    """
    candidates = [column for column in part.column_names if column != "anchor"]
    if len(candidates) < 2:
        raise UserError(
            f"{name}: {teacher} scores how much better a positive is than negatives, and its rows "
            "have none; mine some with llm2comp mine"
        )
    reranker = load_reranker(teacher)
    logger.info("%s: %s scores %s", name, teacher, counted(len(part), "row"))
    options: dict[str, Any] = {"activation_fn": torch.nn.Identity(), "show_progress_bar": False}
    options |= {"batch_size": BATCH, "prompt": prompt}
    columns = []
    with text_progress() as progress:
        task = progress.add_task("teacher", total=len(candidates) * len(part))
        with track_texts(reranker, progress, task, output="scores"):
            for column in candidates:
                pairs = list(zip(part["anchor"], part[column], strict=True))
                columns.append(reranker.predict(pairs, **options))
    scores = np.stack(columns, axis=1)
    _require_finite(name, scores, teacher)
    yield from scores.tolist()


def _vectors(
    part: Dataset, teacher: str, student: Path, prompt: str | None, *, code: bool
) -> Iterator[list[list[float]]]:
    """Yield the vectors of each row's texts, in the dimension of the student.

    Raises:
        UserError: if a number is not finite.
    """
    vectors = _embedded(part, load_in(teacher), teacher, prompt)
    dimension = vectors.shape[-1]
    learner = load_in(str(student), trust_remote_code=code)
    if dimension != learner.get_embedding_dimension():
        own = _embedded(part, learner, str(student), prompt)
        turned = rotation(vectors.reshape(-1, dimension), own.reshape(-1, own.shape[-1]))
        vectors = np.matmul(vectors, turned)
    for row in vectors:
        yield row.tolist()


def _embedded(
    part: Dataset, encoder: SentenceTransformer, name: str, prompt: str | None
) -> Vectors:
    """Return the vectors `(rows, columns, dimension)` of the texts, of unit length or zero.

    Anchors get `prompt` or, if it is None, the encoder's prompt for queries. Other texts get its
    prompt for documents.
    """
    options: dict[str, Any] = {"batch_size": BATCH, "show_progress_bar": False}
    columns = []
    for column in part.column_names:
        texts = list(part[column])
        if column == "anchor":
            columns.append(encoder.encode_query(texts, prompt=prompt, **options))
        else:
            columns.append(encoder.encode_document(texts, **options))
    vectors: Vectors = np.stack(columns, axis=1).astype(np.float32)
    _require_finite(name, vectors, name)
    return to_unit_length(vectors)


def _require_finite(name: str, numbers: Vectors, teacher: str) -> None:
    if not np.isfinite(numbers).all():
        raise UserError(f"{name}: what {teacher} says of it is not finite; take another teacher")


def rotation(vectors: Vectors, wanted: Vectors) -> Vectors:
    """Return the matrix with orthonormal rows or columns that brings vectors nearest to others.

    It is the solution of the orthogonal Procrustes problem (Schönemann, 1966,
    doi 10.1007/BF02289451). Into as many dimensions or more it keeps all cosines.

    Args:
        vectors: `(rows, from)`.
        wanted: `(rows, to)`.

    Returns:
        `(from, to)`.
    """
    left, _, right = np.linalg.svd(np.matmul(vectors.T, wanted), full_matrices=False)
    turned: Vectors = np.matmul(left, right)
    return turned
