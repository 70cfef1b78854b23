"""The Python API: each function does what the command of the same name does.

Every function is importable from the top, as in ``llm2comp.encode``. A function imports what it
needs when it is called, because torch, transformers and mteb take seconds to import.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llm2comp.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from sentence_transformers import SentenceTransformer

    from llm2comp.analysis.measure import Analysis
    from llm2comp.evaluation.checked_export import Check
    from llm2comp.evaluation.store import Score
    from llm2comp.inference.search import Hit
    from llm2comp.recipe import Recipe
    from llm2comp.training.study.results import Results
    from llm2comp.utils.choices import Backend, Precision, Prompt, Suite

    Model = str | Path | SentenceTransformer
    """An encoder's folder, released name or hub id, or a loaded model."""


def fetch(name: str) -> Path:
    """Return the folder of a released encoder; the first call builds it in the user's cache.

    Any program that knows sentence-transformers can load the folder.

    Args:
        name: of the release. ``NAME/1-pretext`` and ``NAME/2-unsupervised`` are the encoders after
            its first two stages.

    Raises:
        UserError: if there is no such release.

    Example:
        >>> folder = llm2comp.fetch("smollm2-135m-llm2comp")
        >>> model = SentenceTransformer(str(folder))
        >>> model.encode(["Whales are mammals."]).shape
        (1, 576)
    """
    from llm2comp.model import released

    return released.fetch(name)


def load(
    name: str | Path, dtype: Precision = "auto", merge_threshold: float | None = None
) -> SentenceTransformer:
    """Load an encoder for fast encoding.

    The result is a sentence-transformers model that batches texts by tokens and computes attention
    faster on processors. Its embeddings are those of the stock model.

    Args:
        name: encoder folder, released name, ``minilm``, or hub id.
        dtype: ``"float32"``, ``"bfloat16"``, or ``"auto"``: bfloat16 where the processor has it
            natively and a check, once per model, finds the embeddings unchanged.
        merge_threshold: merge memory tokens of a text whose average cosine is at least this, above
            0 and at most 1 (paper, "clustering-then-merging"). ``None`` merges nothing.

    Returns:
        A model with the methods of ``SentenceTransformer``.

    Raises:
        UserError: if there is no such encoder, it cannot be loaded, or it has no memory tokens to
            merge.

    Example:
        >>> model = llm2comp.load("smollm2-135m-llm2comp")
        >>> query = model.encode_query("how do whales breathe")
        >>> passages = model.encode_document(["Whales breathe air.", "Roman coins were found."])
        >>> model.similarity(query, passages).argmax().item()
        0
    """
    from llm2comp.inference.load import load as load_encoder

    return load_encoder(name, dtype, merge_threshold)


def encode(
    model: Model,
    texts: Sequence[str],
    *,
    prompt: Prompt | None = None,
    batch_size: int = 32,
    dtype: Precision = "auto",
    merge_threshold: float | None = None,
) -> npt.NDArray[np.float32]:
    """Return the embeddings of texts.

    Args:
        model: name or folder, as :func:`load` takes it, or a loaded model.
        texts: in any order and of any length; a text is cut at the encoder's maximum length.
        prompt: encode as ``"query"`` or ``"document"``, with the encoder's prompt for it; ``None``
            uses no prompt.
        batch_size: texts of 64 tokens per batch. It changes speed, not embeddings.
        dtype: as in :func:`load`; only for a model that is given by name.
        merge_threshold: as in :func:`load`; only for a model that is given by name.

    Returns:
        Shape ``(len(texts), dimension)``. Rows have unit length if the encoder normalises, as
        those of this package do.

    Raises:
        UserError: if the model cannot be loaded, or an option does not fit a loaded model.

    Example:
        >>> embeddings = llm2comp.encode("smollm2-135m-llm2comp", ["Whales are mammals.", ""])
        >>> embeddings.shape
        (2, 576)
        >>> np.save("embeddings.npy", embeddings)
    """
    from llm2comp.inference.embed import embed

    return embed(_loaded(model, dtype, merge_threshold), list(texts), batch_size, prompt)


def encode_file(
    model: Model,
    file: str | Path,
    out: str | Path,
    *,
    prompt: Prompt | None = None,
    batch_size: int = 32,
    workers: int = 1,
    dtype: Precision = "auto",
    merge_threshold: float | None = None,
) -> int:
    """Write the embeddings of a file's texts, in order, in memory that does not grow with the file.

    Args:
        model: name or folder, as :func:`load` takes it, or a loaded model.
        file: ``.txt`` with one text per line, or ``.jsonl``, ``.csv`` or ``.parquet`` with a
            column ``text``.
        out: ``.npy`` for a float32 array of shape ``(rows, dimension)``, or ``.parquet`` for
            columns ``text`` and ``embedding``. The file appears only when it is complete.
        prompt: as in :func:`encode`.
        batch_size: as in :func:`encode`.
        workers: processes that share the work and the threads. A script that asks for more than
            one needs ``if __name__ == "__main__":`` around the call.
        dtype: as in :func:`encode`.
        merge_threshold: as in :func:`encode`.

    Returns:
        The number of rows.

    Raises:
        UserError: if a file is missing, of another kind, or has a row that is no text (the message
            names the line), or the model cannot be loaded.

    Example:
        >>> llm2comp.encode_file("smollm2-135m-llm2comp", "texts.txt", "embeddings.npy")
        8
        >>> np.load("embeddings.npy").shape
        (8, 576)
    """
    from llm2comp.data.text_files import require_texts
    from llm2comp.inference.embedding_files import require_writable

    file, out = Path(file), Path(out)
    require_writable(out)
    require_texts(file)  # before a model is loaded

    from llm2comp.inference.encode_file import encode_file as encode_texts

    encoder = _loaded(model, dtype, merge_threshold)
    return encode_texts(encoder, file, out, batch_size, prompt, workers)


def search(
    model: Model,
    file: str | Path,
    query: str,
    *,
    top_k: int = 5,
    batch_size: int = 32,
    dtype: Precision = "auto",
    merge_threshold: float | None = None,
) -> list[Hit]:
    """Return the texts of a file that are nearest to a query by cosine, best first.

    Args:
        model: name or folder, as :func:`load` takes it, or a loaded model. The query gets its
            query prompt, the texts its document prompt.
        file: as in :func:`encode_file`.
        query: what to look for.
        top_k: number of texts; fewer if the file has fewer.
        batch_size: as in :func:`encode`.
        dtype: as in :func:`encode`.
        merge_threshold: as in :func:`encode`.

    Returns:
        Hits with ``row`` (from 0), ``score`` (cosine) and ``text``.

    Raises:
        UserError: if the file or the model cannot be read, or ``top_k`` is below 1.

    Example:
        >>> hits = llm2comp.search("smollm2-135m-llm2comp", "texts.txt", "animals of the sea")
        >>> hits[0].text
        'Whales are mammals: they breathe air and feed their young with milk.'
    """
    from llm2comp.data.text_files import require_texts

    require_texts(Path(file))  # before a model is loaded

    from llm2comp.inference.search import search as search_file

    encoder = _loaded(model, dtype, merge_threshold)
    return search_file(encoder, Path(file), query, top_k, batch_size)


def train(recipe: Recipe | str | Path, out: str | Path, overrides: Sequence[str] = ()) -> Path:
    """Train an encoder from a recipe, and score what the recipe's ``evaluation`` names.

    A run that was stopped goes on when it is given the same ``out`` again, with the same result.

    Args:
        recipe: a recipe, a recipe file, or the name of a shipped recipe (``smollm2-135m``).
        out: folder of the run. It gets one encoder folder per stage, ``model`` (the last of them),
            ``recipe.yaml``, ``run.jsonl`` and ``scores.json``.
        overrides: changes to the recipe, each ``key=value`` with dots between keys and a stage
            addressed by its name: ``"pretext.steps=400"``. Only for a recipe that is given by name.

    Returns:
        The folder of the trained encoder, ``out/model``.

    Raises:
        UserError: if the recipe is wrong, its data or backbone cannot be had, or ``out`` holds a
            run of another recipe.

    Example:
        >>> folder = llm2comp.train("my-recipe.yaml", "runs/mine", ["seed=1"])
        >>> llm2comp.search(folder, "texts.txt", "animals of the sea")[0].row
        5
    """
    from llm2comp.recipe import Recipe, load_recipe, recipe_path

    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe_path(str(recipe)), list(overrides))
    elif overrides:
        raise UserError(
            "overrides are for a recipe that is given by name; change the recipe itself"
        )

    from llm2comp.training import pipeline

    folder = pipeline.train(recipe, Path(out))
    if recipe.evaluation.tasks:
        from llm2comp.training.scoring import score_run

        score_run(recipe, Path(out))
    return folder


def study(
    study: str | Path, out: str | Path, *, quick: bool = False, reuse: Sequence[str | Path] = ()
) -> Results:
    """Compare settings of a recipe over seeds, at an equal budget.

    A study that was stopped goes on when it is given the same ``out`` again. A trial that fails is
    reported in the results and does not stop the others.

    Args:
        study: a study file, or the name of a shipped study (``pretext``).
        out: folder of the study.
        quick: run the study's small version, which shows that it runs, not what comes of it.
        reuse: folders of other studies. A stage that one of their trials has trained with the same
            settings is copied, not trained again.

    Returns:
        The scores of every trial, with rows and tables over seeds.

    Raises:
        UserError: if the study is wrong, or ``out`` holds another one.

    Example:
        >>> found = llm2comp.study("my-study.yaml", "runs/study")
        >>> [row.name for row in found.rows()]
        ['k = 2', 'k = 4']
    """
    from llm2comp.recipe import study_path
    from llm2comp.training.study.plan import load_study

    loaded = load_study(study_path(str(study)), quick=quick)

    from llm2comp.training.study.run import StudyRun

    return StudyRun(loaded, Path(out), reuse=[Path(folder) for folder in reuse]).run()


def evaluate(
    models: Sequence[str | Path] = (),
    *,
    baselines: Sequence[str] = (),
    backbone: str = "smollm2-135m",
    suite: Suite = "offline",
    tasks: Sequence[str] | None = None,
    quick: bool = False,
    instructions: bool = False,
    out: str | Path | None = None,
    again: bool = False,
    batch_size: int = 32,
    dtype: Precision = "auto",
    merge_threshold: float | None = None,
) -> dict[str, list[Score]]:
    """Score encoders on mteb tasks.

    Scores are kept: what was scored before is not scored again, and a stopped call goes on.

    Args:
        models: names or folders, as :func:`load` takes them.
        baselines: training-free encoders of ``backbone``: ``last-token``, ``mean``,
            ``weighted-mean``, ``echo``, ``prompteol``, ``metaeol``.
        backbone: a causal language model, as a recipe names it.
        suite: ``"offline"`` needs no hub once its data are fetched; ``"paper"`` is the paper's 14
            tasks, from the hub.
        tasks: names of tasks, in place of a suite: this package's, or any of mteb's.
        quick: use fixed subsamples. Their scores compare only with each other.
        instructions: put the paper's instruction for each task before queries.
        out: folder of results; ``None`` is the one in the user's cache.
        again: score even what was scored before.
        batch_size: as in :func:`encode`.
        dtype: as in :func:`load`.
        merge_threshold: as in :func:`load`, for ``models``.

    Returns:
        One row per encoder, baselines first: its name, and one score per task. ``main_score`` is
        the task's metric in percent.

    Raises:
        UserError: if nothing is named, a name is unknown, or data or models cannot be had.

    Example:
        >>> rows = llm2comp.evaluate(["minilm"], tasks=["STS17"])
        >>> rows["minilm"][0].main_score > 50
        True
    """
    from llm2comp.evaluation.evaluate import evaluate as evaluate_all

    return evaluate_all(
        [str(model) for model in models],
        baselines=baselines,
        backbone=backbone,
        suite=suite,
        tasks=tasks,
        quick=quick,
        instructions=instructions,
        out=None if out is None else Path(out),
        again=again,
        batch_size=batch_size,
        dtype=dtype,
        merge_threshold=merge_threshold,
    )


def analyze(
    models: Sequence[str | Path],
    out: str | Path,
    *,
    data: str = "boolq-pairs",
    texts: int = 1000,
    seed: int = 0,
    batch_size: int = 32,
    dtype: Precision = "auto",
    merge_threshold: float | None = None,
) -> list[Analysis]:
    """Measure how encoders use their space, and what their memory tokens say.

    Args:
        models: names or folders, as :func:`load` takes them, or ``.npy`` files of embeddings.
        out: folder. It gets one JSON per encoder, and the figures ``spectrum`` and ``memory`` as
            PNG and SVG.
        data: a packaged source, local file or hub data set, with a column ``text``, or with
            ``anchor`` and ``positive``.
        texts: number of texts, or pairs, to draw from it.
        seed: of the draw.
        batch_size: as in :func:`encode`.
        dtype: as in :func:`load`.
        merge_threshold: as in :func:`load`.

    Returns:
        One analysis per model: spectrum, effective dimensions, alignment, uniformity, hubness,
        redundancy of memory tokens.

    Raises:
        UserError: if a model or the data cannot be had, or matplotlib is not installed.

    Example:
        >>> (found,) = llm2comp.analyze(["smollm2-135m-llm2comp"], "analysis", data="texts.txt")
        >>> found.spectrum.rankme > 1
        True
    """
    from llm2comp.analysis.analyze import analyze as analyze_all

    names = [str(model) for model in models]
    return analyze_all(names, Path(out), data, texts, seed, batch_size, dtype, merge_threshold)


def report(
    models: Sequence[str | Path],
    out: str | Path,
    *,
    data: str = "boolq-passages",
    texts: int = 300,
    queries: Sequence[str] = (),
    seed: int = 0,
    batch_size: int = 32,
    dtype: Precision = "auto",
) -> Path:
    """Write one HTML file about a run, or about encoders side by side.

    Args:
        models: one run folder; or encoders, as :func:`load` takes them.
        out: the HTML file. It needs no network to be read.
        data: source of the texts to map and to search in, as in :func:`analyze`.
        texts: number of texts to draw from it.
        queries: to search for; three examples, when none is given.
        seed: of the draw.
        batch_size: as in :func:`encode`.
        dtype: as in :func:`load`.

    Returns:
        ``out``.

    Raises:
        UserError: if a model or the data cannot be had, or plotly is not installed.

    Example:
        >>> page = llm2comp.report(["smollm2-135m-llm2comp"], "report.html", data="my.jsonl")
        >>> page.stat().st_size > 1_000_000
        True
    """
    from llm2comp.analysis.report.write import report as write_report

    names = [str(model) for model in models]
    return write_report(names, Path(out), data, texts, queries, seed, batch_size, dtype)


def export(model: str | Path, to: Backend, out: str | Path, *, int8: bool = False) -> Check:
    """Compile an encoder for ONNX Runtime or OpenVINO, and check what was compiled.

    The result is compared with the encoder in PyTorch and float32, by its embeddings and by
    STSBenchmark. An export that differs too much is not written.

    Args:
        model: name or folder, as :func:`load` takes it.
        to: ``"onnx"`` or ``"openvino"``.
        out: encoder folder to write.
        int8: keep the weights in 8 bits.

    Returns:
        How far the export is from the original.

    Raises:
        UserError: if the encoder cannot be loaded, the back end is not installed, ``out`` holds
            something else, or the export differs too much.

    Example:
        >>> check = llm2comp.export("smollm2-135m-llm2comp", "onnx", "encoder-onnx")
        >>> check.difference < 1e-3
        True
    """
    from llm2comp.evaluation.checked_export import export as compile_encoder

    return compile_encoder(str(model), to, Path(out), int8=int8)


def _loaded(model: Model, dtype: Precision, merge_threshold: float | None) -> SentenceTransformer:
    """Load a model that is given by name."""
    if isinstance(model, str | Path):
        return load(model, dtype, merge_threshold)
    if dtype != "auto" or merge_threshold is not None:
        raise UserError("dtype and merge_threshold are for a model given by name; use load()")
    return model
