"""What the vectors of many files have in common, so that they can be put into one index."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from llm2comp.errors import UserError
from llm2comp.inference.embedding_files import Content
from llm2comp.utils.choices import EmbeddingPrecision, OnBadRow, Precision, Prompt


@dataclass(frozen=True)
class Settings:
    """How many files are encoded.

    Attributes:
        model: name, folder or hub id of the encoder; all machines must find it.
        prompt: name of the prompt before each text; None for no prompt.
        dtype: of the weights, as `llm2comp.load` takes it.
        merge_threshold: as `llm2comp.load` takes it.
        dim: number of leading dimensions to keep; None keeps all.
        precision: of the stored numbers.
        keep: columns of the texts that are kept, in this order: `id`, `text`.
        batch_size: texts of 64 tokens per batch. It changes speed, not embeddings.
        on_bad_row: whether a bad row fails its file, or is left out and listed.
        memory_tokens: as `llm2comp.load` takes it.
    """

    model: str
    prompt: Prompt | None = None
    dtype: Precision = "auto"
    merge_threshold: float | None = None
    dim: int | None = None
    precision: EmbeddingPrecision = "float32"
    keep: tuple[str, ...] = ()
    batch_size: int = 32
    on_bad_row: OnBadRow = "fail"
    memory_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.prompt not in (None, "query", "document"):
            raise UserError(f"prompt {self.prompt!r} is neither 'query' nor 'document'")
        if not set(self.keep) <= {"id", "text"} or len(set(self.keep)) < len(self.keep):
            raise UserError(f"keep is {','.join(self.keep)!r}; it can be id, text, or id,text")

    @property
    def asked(self) -> dict[str, Any]:
        """What decides the vectors, besides the files of the model."""
        return {
            "prompt": self.prompt,
            "dtype": self.dtype,
            "merge_threshold": self.merge_threshold,
            "memory_tokens": self.memory_tokens,
            "dim": self.dim,
            "precision": self.precision,
            "keep": list(self.keep),
        }


@dataclass(frozen=True)
class Encoding:
    """What the vectors of a folder are.

    Attributes:
        model: name of the encoder, as the user spelled it first.
        fingerprint: of the encoder: a hash of its files, or the commit of a model of the hub.
        asked: the settings.
        content: how the vectors are stored; with the ranges of int8, which are the same in all
            files.
    """

    model: str
    fingerprint: str
    asked: dict[str, Any]
    content: Content

    def to_json(self) -> str:
        """Return all of it as JSON."""
        about = {"model": self.model, "model_sha256": self.fingerprint, **self.asked}
        return json.dumps(about | {"vectors": json.loads(self.content.to_json())})

    @classmethod
    def from_json(cls, said: str | bytes) -> Self:
        """Return what `to_json` wrote."""
        raw = json.loads(said)
        content = Content.from_json(json.dumps(raw.pop("vectors")))
        return cls(raw.pop("model"), raw.pop("model_sha256"), raw, content)

    @property
    def id(self) -> str:
        """A hash of everything but the name of the model."""
        said = [self.fingerprint, self.asked, self.content.to_json()]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]

    def require_same(self, fingerprint: str, settings: Settings, where: str) -> None:
        """Check that another call would make the same vectors.

        Raises:
            UserError: if its model or a setting is another.
        """
        if fingerprint != self.fingerprint:
            raise UserError(
                f"{where}: holds vectors of another model, {self.model} as it was then; name "
                "another folder"
            )
        for name, value in settings.asked.items():
            before = self.asked.get(name)
            if before != value:
                shown = [_shown(one) for one in (before, value)]
                raise UserError(
                    f"{where}: holds vectors with {name} {shown[0]}, and not {shown[1]}; name "
                    "another folder"
                )


def _shown(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ",".join(value) or "none"
    return "none" if value is None else str(value)
