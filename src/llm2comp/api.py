"""The Python API: each function does what the command of the same name does.

All of them are imported from the top, as `llm2comp.encode`; the examples assume `import llm2comp`.
A function imports what it needs when it is called, because torch and mteb take seconds to import.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llm2comp.api_analysis import analyze as analyze
from llm2comp.api_analysis import answer as answer
from llm2comp.api_analysis import capacity as capacity
from llm2comp.api_analysis import generate as generate
from llm2comp.api_analysis import memory as memory
from llm2comp.api_analysis import read as read
from llm2comp.api_analysis import report as report
from llm2comp.api_bulk import encode_files as encode_files
from llm2comp.api_index import index as index
from llm2comp.api_index import open_index as open_index
from llm2comp.api_mining import mine as mine
from llm2comp.api_planning import plan as plan
from llm2comp.api_publishing import export as export
from llm2comp.api_publishing import push as push
from llm2comp.errors import UserError
from llm2comp.utils.files import user_path

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from sentence_transformers import SentenceTransformer

    from llm2comp.evaluation.store import Score
    from llm2comp.inference.search import Hit
    from llm2comp.inference.vector_format import VectorFormat
    from llm2comp.recipe import Recipe
    from llm2comp.training.study.results import Results
    from llm2comp.utils.choices import EmbeddingPrecision, Precision, Prompt, Suite, VectorCount

    Model = str | Path | SentenceTransformer
    """An encoder folder, released name or hub id, or a loaded model."""


def fetch(name: str) -> Path:
    """Return the folder of a released encoder. The first call builds it in the user's cache.

    Args:
        name: name of the release; `NAME/1-pretext` and `NAME/2-unsupervised` are earlier stages.

    Raises:
        UserError: if there is no such release.

    Examples:
        >>> from sentence_transformers import SentenceTransformer
        >>> folder = llm2comp.fetch("smollm2-135m-llm2comp")
        >>> model = SentenceTransformer(str(folder))
        >>> len(model.encode(["Whales are mammals."]))
        1
    """
    from llm2comp.model import released

    return released.fetch(name)


def load(
    name: str | Path, dtype: Precision = "auto", merge_threshold: float | None = None, *,
    memory_tokens: int | None = None, trust_remote_code: bool = False,
    attn_implementation: str | None = None,
) -> SentenceTransformer:  # fmt: skip
    """Load an encoder for fast encoding and return it as a `SentenceTransformer`.

    It is faster than plain sentence-transformers, and its embeddings are the same.

    Args:
        name: encoder folder, released name, `minilm`, or hub id.
        dtype: `"float32"`, `"bfloat16"` or `"auto"`: bfloat16 if it is native and changes nothing.
        merge_threshold: merge the memory tokens of a text whose average cosine is at least this,
            above 0 and at most 1 (paper, "clustering-then-merging"). `None` merges nothing.
        memory_tokens: append only so many memory tokens, the first ones; `None` appends all.
        trust_remote_code: run Python code that comes with the encoder, if it has any.
        attn_implementation: how attention is computed, as in a recipe's `backbone`.

    Raises:
        UserError: if the encoder cannot be found or loaded, or has no memory tokens to merge.

    Examples:
        >>> model = llm2comp.load("smollm2-135m-llm2comp")
        >>> query = model.encode_query("how do whales breathe")
        >>> documents = model.encode_document(["Whales breathe air.", "Roman coins were found."])
        >>> model.similarity(query, documents).shape
        torch.Size([1, 2])
    """
    from llm2comp.inference.load import load as load_encoder

    return load_encoder(name, dtype, merge_threshold, memory_tokens=memory_tokens,
                        trust_remote_code=trust_remote_code,
                        attn_implementation=attn_implementation)  # fmt: skip


def encode(
    model: Model, texts: Sequence[str], *, prompt: Prompt | None = None, batch_size: int = 32,
    dtype: Precision = "auto", merge_threshold: float | None = None, dim: int | None = None,
    memory_tokens: int | None = None,
) -> npt.NDArray[np.float32]:  # fmt: skip
    """Return the embeddings of texts, of shape `(len(texts), dimension)`.

    They have unit length if the encoder normalizes them, as the encoders of this package do.

    Args:
        model: a name or folder that `load` takes, or a loaded model.
        texts: texts of any length. A text is truncated to the maximum length of the encoder.
        prompt: `"query"` or `"document"` puts the encoder's prompt of that name before each text.
        batch_size: number of texts of 64 tokens per batch. It changes speed, not embeddings.
        dtype: as in `load`; only if the model is given by name.
        merge_threshold: as in `load`; only if the model is given by name.
        dim: keep this many leading dimensions, scaled to unit length; `None` keeps all.
        memory_tokens: as in `load`; only if the model is given by name.

    Raises:
        UserError: if the model cannot be loaded, an option is not for a loaded model, or the
            embeddings have fewer dimensions.

    Examples:
        >>> embeddings = llm2comp.encode("smollm2-135m-llm2comp", ["Whales are mammals.", ""])
        >>> (embeddings @ embeddings.T).shape
        (2, 2)
    """
    from llm2comp.inference.embed import as_texts, embed
    from llm2comp.inference.vector_format import require_dim, truncate

    encoder, listed = _loaded(model, dtype, merge_threshold, memory_tokens), as_texts(texts)
    kept = require_dim(encoder, dim)
    return truncate(embed(encoder, listed, batch_size, prompt), kept)


def encode_file(
    model: Model, file: str | Path, out: str | Path, *, prompt: Prompt | None = None,
    batch_size: int = 32, workers: int | None = None, dtype: Precision = "auto",
    merge_threshold: float | None = None, dim: int | None = None,
    precision: EmbeddingPrecision = "float32", memory_tokens: int | None = None,
) -> int:  # fmt: skip
    """Write the embeddings of a file's texts, in order, and return the number of rows.

    Args:
        model: as in `encode`.
        file: file of any size: `.txt` (one text per line), `.jsonl`, `.csv` or `.parquet` (column
            `text`); or `-`, which is standard input.
        out: `.npy` for an array of shape `(rows, dimension)`, `.npz` for the arrays `embeddings`
            and `format`, or `.parquet` for columns `text` and `embedding`. The last two say how the
            vectors are stored. The file appears only when it is complete.
        prompt: as in `encode`.
        batch_size: as in `encode`.
        workers: processes that share the threads; `None` is one. A script with several needs
            `if __name__ == "__main__":` around the call.
        dtype: as in `encode`.
        merge_threshold: as in `encode`.
        dim: as in `encode`.
        precision: of the stored numbers: `"float32"`, `"float16"`, `"int8"`, `"uint8"` or
            `"binary"` (one bit for each dimension). All but the first two need `.npz` or
            `.parquet`.
        memory_tokens: as in `encode`.

    Raises:
        UserError: if a file is missing or of another kind, a row is bad (the message names its
            line), the model cannot be loaded, or the embeddings have fewer dimensions.

    Examples:
        >>> import numpy as np
        >>> llm2comp.encode_file("smollm2-135m-llm2comp", "texts.txt", "embeddings.npy")
        8
        >>> len(np.load("embeddings.npy"))
        8
    """
    from llm2comp.data import text_files
    from llm2comp.inference import embedding_files
    from llm2comp.inference.encode_file import encode_file as encode_texts

    texts, target = user_path(file), user_path(out)
    embedding_files.require_writable(target, texts, precision)
    text_files.require_texts(texts)  # before a model is loaded
    encoder = _loaded(model, dtype, merge_threshold, memory_tokens)
    whole = merge_threshold is None and memory_tokens is None
    vectors = _vector_format(model, encoder, whole, dim, precision)
    processes = 1 if workers is None else workers
    return encode_texts(encoder, texts, target, batch_size, prompt, processes, vectors)


def search(
    model: Model, file: str | Path, query: str, *, top_k: int = 5, batch_size: int = 32,
    dtype: Precision = "auto", merge_threshold: float | None = None, dim: int | None = None,
    precision: EmbeddingPrecision | None = None, memory_tokens: int | None = None,
    vectors: VectorCount | None = None,
) -> list[Hit]:  # fmt: skip
    """Return the texts of a file that are nearest to a query, best first.

    A `.parquet` file that `encode_file` wrote with `prompt="document"` is not encoded again.

    Args:
        model: as in `encode`. The query gets its query prompt, the texts get its document prompt.
        file: as in `encode_file`.
        query: what to look for.
        top_k: number of texts to return; fewer if the file has fewer.
        batch_size: as in `encode`.
        dtype: as in `encode`.
        merge_threshold: as in `encode`.
        dim: as in `encode`; `None` is as in a file of embeddings.
        precision: store the texts as `encode_file` does, and compare them with the floats of the
            query; `None` is as in a file of embeddings, or else float32.
        memory_tokens: as in `encode`.
        vectors: `"k"` compares the k memory vectors of each text with those of the query, by
            MaxSim. `dim` and `precision` are for one vector, as `None` is.

    Returns:
        Hits with `row` (from 0), `score` (cosine, or MaxSim) and `text`.

    Raises:
        UserError: if the file or the model cannot be read, `top_k` is below 1, a file of embeddings
            is of another model or has another `dim` or `precision`, or the model has no k vectors.

    Examples:
        >>> hits = llm2comp.search("smollm2-135m-llm2comp", "texts.txt", "animals of the sea")
        >>> hits[0].score >= hits[-1].score
        True
    """
    from llm2comp.data import text_files
    from llm2comp.inference import embedding_files
    from llm2comp.inference import search as searching
    from llm2comp.inference.vector_format import require_vectors

    searching.require_query(query)
    texts = user_path(file)
    text_files.require_texts(texts)  # before a model is loaded
    require_vectors(vectors or "one", dim=dim, precision=precision)
    known = embedding_files.has_vectors(texts, dim, precision)
    encoder, stored_as = _loaded(model, dtype, merge_threshold, memory_tokens), None
    if vectors == "k":
        name = str(model) if isinstance(model, str | Path) else "the encoder"
        return searching.search_k_vectors(encoder, name, texts, query, top_k, batch_size)
    if not known:
        whole = merge_threshold is None and memory_tokens is None
        stored_as = _vector_format(model, encoder, whole, dim, precision or "float32")
    return searching.search(encoder, texts, query, top_k, batch_size, stored_as)


def train(recipe: Recipe | str | Path, out: str | Path, overrides: Sequence[str] = ()) -> Path:
    """Train and score an encoder; return its folder, `out/model`. The same call continues a run.

    Args:
        recipe: a recipe, a recipe file, or the name of a shipped recipe (`smollm2-135m`).
        out: folder of the run. It gets one encoder folder per stage, `model` (a copy of the last),
            `recipe.yaml`, `run.jsonl` and `scores.json`.
        overrides: changes to the recipe, each `key=value` with dots between keys and stages
            addressed by name: `"pretext.steps=400"`. Only if the recipe is given by name.

    Raises:
        UserError: if the recipe is wrong, its data or backbone is not available, or `out` holds a
            run of another recipe.

    Examples:
        >>> folder = llm2comp.train("my-recipe.yaml", "runs/mine", ["seed=1"])
        >>> len(llm2comp.search(folder, "texts.txt", "animals of the sea", top_k=2))
        2
    """
    from llm2comp.recipe import Recipe, load_recipe, recipe_path

    if not isinstance(recipe, Recipe):
        changes = [overrides] if isinstance(overrides, str) else list(overrides)
        recipe = load_recipe(recipe_path(str(recipe)), changes)
    elif overrides:
        raise UserError("overrides are for a recipe given by name; change the Recipe itself")
    from llm2comp.training import pipeline
    from llm2comp.training.distributed import world

    run = user_path(out)
    if not recipe.evaluation.tasks:
        return pipeline.train(recipe, run)
    from llm2comp.training.scoring import check_evaluation, score_run

    with world.joined():
        check_evaluation(recipe)
        folder = pipeline.train(recipe, run)
        world.from_main(lambda: score_run(recipe, run))
    return folder


def study(
    study: str | Path, out: str | Path, *, quick: bool = False, reuse: Sequence[str | Path] = ()
) -> Results:
    """Compare settings of a recipe over seeds, at an equal budget, and return all scores.

    The same call continues a study. A trial that fails does not stop the others.

    Args:
        study: a study file, or the name of a shipped study (`pretext`).
        out: folder of the study.
        quick: run the small version of the study, which only shows that the study works.
        reuse: folders of studies; their stages with the same settings are copied, not retrained.

    Raises:
        UserError: if the study is wrong, or `out` holds another study.

    Examples:
        >>> results = llm2comp.study("my-study.yaml", "runs/study")
        >>> results.score_table()[0]
        ['setting', 'runs', 'STS17', 'mean']
    """
    from llm2comp.recipe import study_path
    from llm2comp.training.study.plan import load_study

    loaded = load_study(study_path(str(study)), quick=quick)
    from llm2comp.training.distributed import world
    from llm2comp.training.study.run import StudyRun

    world.require_one_process("a study")
    return StudyRun(loaded, user_path(out), reuse=[user_path(folder) for folder in reuse]).run()


def evaluate(
    models: Sequence[str | Path] = (), *, baselines: Sequence[str] = (),
    backbone: str = "smollm2-135m", suite: Suite = "offline", tasks: Sequence[str] | None = None,
    data: str | Path | Sequence[str | Path] = (), quick: bool = False, instructions: bool = False,
    out: str | Path | None = None, again: bool = False,
    batch_size: int = 32, dtype: Precision = "auto", merge_threshold: float | None = None,
    dim: int | None = None, precision: EmbeddingPrecision = "float32", sizes: bool = False,
    vectors: VectorCount = "one", memory_tokens: int | None = None,
) -> dict[str, list[Score]]:  # fmt: skip
    """Score encoders on mteb tasks, and return the scores by the name of the encoder.

    Scores are stored, and a stored score is not computed again. So a call that was stopped
    continues when it is repeated. `main_score` is the metric of the task in percent.

    Args:
        models: names or folders that `load` takes.
        baselines: training-free encoders of `backbone`, such as `last-token` or `prompteol`.
        backbone: causal language model of the baselines, as a recipe names it.
        suite: `"offline"` (its data is downloaded once), or `"paper"` (14 tasks from the hub).
        tasks: task names instead of a suite: tasks of this package, or any other of mteb's.
        data: files of your own pairs, or folders in BEIR's layout, also instead of a suite.
        quick: use fixed subsamples. Compare such scores only with each other.
        instructions: put the paper's instruction for each task before queries.
        out: folder of stored results; `None` is the one in the user's cache.
        again: compute scores again even if they are stored.
        batch_size: as in `encode`.
        dtype: as in `load`.
        merge_threshold: as in `load`; it does not apply to baselines.
        dim: as in `encode`.
        precision: as in `encode_file`. The queries of a search stay floats.
        sizes: score vectors of several numbers of dimensions in all precisions, each as a row of
            its own. The texts are encoded once.
        vectors: `"k"` scores the k memory vectors of each text with MaxSim, on tasks of retrieval
            and STS.
        memory_tokens: as in `load`; it does not apply to baselines.

    Raises:
        UserError: if nothing is named, a name is unknown, or data or models are not available.

    Examples:
        >>> scores = llm2comp.evaluate(["minilm"], tasks=["STS17"])
        >>> {score.task: round(score.main_score, 1) for score in scores["minilm"]}
        {'STS17': ...}
    """
    from llm2comp.evaluation.evaluate import Encoders, Tasks, Vectors
    from llm2comp.evaluation.evaluate import evaluate as evaluate_all
    from llm2comp.evaluation.own_data.tasks import read_all
    from llm2comp.evaluation.store import ResultStore

    encoders = Encoders(models, baselines, backbone, dtype, merge_threshold, vectors, memory_tokens)
    chosen = Tasks(suite, tasks, quick, instructions, read_all(data))
    results = ResultStore(None if out is None else user_path(out))
    stored = Vectors(dim, precision, sizes)
    return evaluate_all(encoders, chosen, results, batch_size, again=again, vectors=stored)


def _loaded(
    model: Model, dtype: Precision, merge_threshold: float | None, memory_tokens: int | None
) -> SentenceTransformer:
    if isinstance(model, str | Path):
        return load(model, dtype, merge_threshold, memory_tokens=memory_tokens)
    if (dtype, merge_threshold, memory_tokens) != ("auto", None, None):
        raise UserError(
            "dtype, merge_threshold and memory_tokens are for a model given by name; use load()"
        )
    return model


def _vector_format(
    model: Model, encoder: SentenceTransformer, whole: bool, dim: int | None,
    precision: EmbeddingPrecision,
) -> VectorFormat:  # fmt: skip
    """Return how embeddings are stored; the sample is kept for a named model loaded as it is."""
    from llm2comp.inference.calibration import vector_format

    named = isinstance(model, str | Path) and whole
    return vector_format(encoder, dim, precision, str(model) if named else None)
