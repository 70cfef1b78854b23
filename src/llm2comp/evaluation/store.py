"""Results on disk: one JSON file per model and task. A stored result is not computed again."""

import hashlib
import json
import platform
import re
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import torch
from mteb.abstasks import AbsTask
from pydantic import TypeAdapter, ValidationError
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules.module import Module

from llm2comp.errors import UserError
from llm2comp.model.lineage import Lineage
from llm2comp.utils.choices import EmbeddingPrecision
from llm2comp.utils.files import atomic_file, cache_dir
from llm2comp.version import __version__

PACKAGES = ("mteb", "sentence-transformers", "transformers", "torch")


@dataclass(frozen=True)
class Score:
    """The score of one model on one task.

    Attributes:
        task: name of the task.
        metric: name of its main metric.
        main_score: the metric in percent.
        seconds: time of encoding and scoring, without loading.
        texts: number of texts that were encoded.
        texts_per_second: `texts` per `seconds`.
        samples: number of pairs, questions or documents that are scored; 0 if unknown.
        quick: whether it is the quick version of the task.
        dim: number of dimensions of the embeddings; 0 in results of older versions.
        precision: in which the embeddings were stored.
    """

    task: str
    metric: str
    main_score: float
    seconds: float
    texts: int
    texts_per_second: float
    samples: int
    quick: bool
    dim: int = 0
    precision: EmbeddingPrecision = "float32"


@dataclass(frozen=True)
class TaskResult:
    """A score with everything that explains it. The fields are those of the JSON file.

    Attributes:
        model: name of the model, as it was given.
        score: the score.
        type: type of the task: the paper's group, or mteb's type in lower case.
        instruction: the instruction before queries; empty if there was none.
        prompts: the prompts of the model.
        key: hash of what the score depends on. The same key means the same score.
        versions: versions of the packages that computed it.
        lineage: content of the encoder's `llm2comp.json`, if it has one.
        items: items to compare two models by, see `llm2comp.evaluation.intervals.items`; empty if
            the score is not computed from items.
        mteb: mteb's own result, with all metrics.
    """

    model: str
    score: Score
    type: str
    instruction: str
    prompts: dict[str, Any]
    key: str
    versions: dict[str, str]
    lineage: Lineage | None
    items: dict[str, Any] = field(default_factory=dict)
    mteb: dict[str, Any] = field(default_factory=dict)


class ResultStore:
    """A folder of results, `<model>/<task>[-quick].json`.

    Args:
        folder: created with the first result. `None` is the folder in the user's cache.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_dir() / "results"

    def get(self, model: str, task: str, quick: bool, expected_key: str) -> TaskResult | None:
        """Return the stored result of a model on a task, or `None` if its key is another one.

        Raises:
            UserError: if the file is broken.
        """
        file = self._file(model, task, quick)
        if not file.exists():
            return None
        result = _read(file)
        return result if result.key == expected_key else None

    def save(self, result: TaskResult) -> None:
        """Write a result completely or not at all."""
        file = self._file(result.model, result.score.task, result.score.quick)
        with atomic_file(file) as partial:
            content = TypeAdapter(TaskResult).dump_json(result, indent=1, fallback=str)
            partial.write_bytes(content + b"\n")

    def all(self) -> list[TaskResult]:
        """Return all results, sorted by model and task.

        Raises:
            UserError: if a file is broken.
        """
        return [_read(file) for file in sorted(self.folder.glob("*/*.json"))]

    def _file(self, model: str, task: str, quick: bool) -> Path:
        return self.folder / folder_name(model) / f"{task}{'-quick' if quick else ''}.json"


def folder_name(model: str) -> str:
    """Return the name of a model's folder in a store."""
    return re.sub(r"[^\w.-]+", "__", model).strip("_.") or "model"


def key(fingerprint: str, task: AbsTask, instruction: str, *, quick: bool) -> str:
    """Return a hash of what a score depends on: model, task and its data, instruction, mteb.

    Do not change what is hashed, nor its order: results that are stored would be computed again.
    """
    about = task.metadata
    parts = [fingerprint, about.name, about.dataset, about.description, task.hf_subsets, quick]
    parts += [instruction, metadata.version("mteb")]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


def fingerprint(model: SentenceTransformer) -> str:
    """Return a hash of what a model's embeddings depend on: weights, modules, prompts and others.

    It takes about a second per gigabyte of weights on a CPU of 2025. Do not change what is hashed:
    results that are stored would be computed again.
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    for module in model.children():
        digest.update(type(module).__name__.encode())
        digest.update(json.dumps(cast(Module, module).get_config_dict(), default=str).encode())
        config = getattr(getattr(module, "model", None), "config", None)
        if getattr(config, "is_causal", True) is False:  # a setting of the transformer alone
            digest.update(b"bidirectional")
    digest.update(json.dumps([model.prompts, model.max_seq_length], default=str).encode())
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    if backend is not None:
        # Every call changes truncation and padding, so they are left out.
        state = json.loads(backend.to_str()) | {"truncation": None, "padding": None}
        digest.update(json.dumps(state).encode())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a score depends on."""
    own = {"python": platform.python_version(), "llm2comp": __version__}
    return own | {package: metadata.version(package) for package in PACKAGES}


def _read(file: Path) -> TaskResult:
    try:
        return TypeAdapter(TaskResult).validate_json(file.read_bytes())
    except ValidationError as error:
        raise UserError(
            f"{file} is not a score that llm2comp stored; remove it, or name a folder that holds "
            "nothing but scores"
        ) from error
