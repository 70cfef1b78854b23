"""Results on disk: one JSON a model and task, which is also the cache of what has been scored."""

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
from llm2comp.utils.files import atomic_file, cache_dir

PACKAGES = ("llm2comp", "mteb", "sentence-transformers", "transformers", "torch")


@dataclass(frozen=True)
class Score:
    """What one model got on one task."""

    task: str
    metric: str
    main_score: float
    """The metric in percent."""
    seconds: float
    """Encoding and scoring, not loading."""
    texts: int
    texts_per_second: float
    samples: int
    """What the score is taken over: pairs, questions; 0 if the task does not say."""
    quick: bool


@dataclass(frozen=True)
class TaskResult:
    """A score with all that explains it.

    Attributes:
        model: its name as given.
        score: the score.
        type: the paper's group of tasks, or mteb's type in lower case.
        instruction: what stood before queries; empty if nothing did.
        prompts: those that the model brings along.
        key: of :func:`key`; the same key needs no other run.
        versions: of the packages that computed it.
        lineage: ``llm2comp.json`` of the encoder, if it is one of ours.
        items: by which two models can be compared, see :mod:`.intervals`; empty if the metric
            does not allow it.
        mteb: mteb's own result, with all of its metrics.
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
    """A folder of results, ``<model>/<task>[-quick].json``.

    Args:
        folder: made when the first result comes; the user's cache, when not given.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_dir() / "results"

    def get(self, model: str, task: str, quick: bool, wanted: str) -> TaskResult | None:
        """Return the result of a model on a task if its key is the wanted one."""
        file = self._file(model, task, quick)
        if not file.exists():
            return None
        stored = _read(file)
        return stored if stored.key == wanted else None

    def save(self, stored: TaskResult) -> None:
        """Write a result, whole or not at all."""
        with atomic_file(
            self._file(stored.model, stored.score.task, stored.score.quick)
        ) as partial:
            content = TypeAdapter(TaskResult).dump_json(stored, indent=1, fallback=str)
            partial.write_bytes(content + b"\n")

    def all(self) -> list[TaskResult]:
        """Return every result, the models in alphabetical order.

        Raises:
            UserError: if a file is broken.
        """
        return [_read(file) for file in sorted(self.folder.glob("*/*.json"))]

    def _file(self, model: str, task: str, quick: bool) -> Path:
        folder = re.sub(r"[^\w.-]+", "__", model).strip("_.") or "model"
        return self.folder / folder / f"{task}{'-quick' if quick else ''}.json"


def key(fingerprint: str, task: AbsTask, instruction: str, *, quick: bool) -> str:
    """Return what a score depends on, hashed: model, task and its data, instruction, mteb."""
    about = task.metadata
    parts = [fingerprint, about.name, about.dataset, about.description, task.hf_subsets, quick]
    parts += [instruction, metadata.version("mteb")]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


def fingerprint(model: SentenceTransformer) -> str:
    """Return a hash of all that a model's vectors depend on: weights, tokenizer, modules, prompts.

    A second per gigabyte of weights, on a processor of 2025.
    """
    whole = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    for module in model.children():
        whole.update(type(module).__name__.encode())
        whole.update(json.dumps(cast(Module, module).get_config_dict(), default=str).encode())
    whole.update(json.dumps([model.prompts, model.max_seq_length], default=str).encode())
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    if backend is not None:
        # Truncation and padding are as the last call left them.
        state = json.loads(backend.to_str()) | {"truncation": None, "padding": None}
        whole.update(json.dumps(state).encode())
    return whole.hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of what computes a score."""
    return {"python": platform.python_version()} | {
        package: metadata.version(package) for package in PACKAGES
    }


def _read(file: Path) -> TaskResult:
    try:
        return TypeAdapter(TaskResult).validate_json(file.read_bytes())
    except ValidationError as error:
        raise UserError(f"{file} cannot be read; remove it to score the model anew") from error
