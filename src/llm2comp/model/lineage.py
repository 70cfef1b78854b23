"""The lineage of an encoder: what ``llm2comp.json`` in its folder says of its making."""

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from llm2comp.errors import UserError
from llm2comp.model.prompt_format import PROMPT_FORMATS, PromptFormat
from llm2comp.recipe import Backbone, DataSource, Memory, Recipe, StageBase
from llm2comp.utils.choices import Backend
from llm2comp.utils.files import atomic_file
from llm2comp.version import __version__

LINEAGE = "llm2comp.json"
FORMAT_VERSION = 2
"""Version 1, which llm2comp 0.1 wrote, had neither this number nor the prompt format."""
_FORMATS_OF_VERSION_1 = {"mntp": "text", "embedding_prediction": "summarize"}
"""Prompt formats by pretext objective; those of all other objectives were ``memory``."""
PACKAGES = ("torch", "transformers", "peft", "sentence-transformers", "tokenizers")


class StageRecord(BaseModel):
    """A stage that was trained: the stage of the recipe, and the attention that came of it.

    It keeps keys that it does not know, so that a folder of another version loses nothing.
    """

    model_config = ConfigDict(extra="allow")

    stage: str
    objective: str | None = None
    """Of a pretext stage."""
    data: list[DataSource]
    steps: int
    batch_size: int
    learning_rate: float
    causal: bool

    @classmethod
    def of(cls, stage: StageBase, *, causal: bool) -> "StageRecord":
        """Record a stage of a recipe."""
        return cls.model_validate(stage.model_dump() | {"causal": causal})


class Compiled(BaseModel):
    """What an encoder was compiled for, and how it differed from the original."""

    model_config = ConfigDict(extra="allow")

    to: Backend
    int8: bool


class Lineage(BaseModel):
    """Where an encoder comes from.

    Attributes:
        format_version: of this file's format.
        name: of the recipe.
        backbone: the causal language model.
        memory: its memory tokens.
        prompt_format: a key of :data:`.prompt_format.PROMPT_FORMATS`.
        prompts: for queries and documents.
        max_length: tokens of a text that the encoder reads; memory tokens are not counted.
        seed: of the run.
        stages: those trained so far, in their order.
        versions: of Python and of the packages that made the encoder.
        compiled: of a compiled encoder.
    """

    model_config = ConfigDict(extra="allow")

    format_version: int = FORMAT_VERSION
    name: str
    backbone: Backbone
    memory: Memory
    prompt_format: str
    prompts: dict[str, str]
    max_length: int
    seed: int
    stages: list[StageRecord] = Field(default=[])
    versions: dict[str, str] = Field(default={})
    compiled: Compiled | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_version_1(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and "format_version" not in raw and raw.get("stages"):
            objective = raw["stages"][0].get("objective")
            known = {"prompt_format": _FORMATS_OF_VERSION_1.get(objective, "memory")}
            return known | raw | {"format_version": FORMAT_VERSION}
        return raw

    @model_validator(mode="after")
    def _known_format(self) -> "Lineage":
        if self.format_version > FORMAT_VERSION:
            raise ValueError(f"format {self.format_version} is of a later llm2comp; update it")
        if self.prompt_format not in PROMPT_FORMATS:
            raise ValueError(f"prompt format {self.prompt_format!r} is unknown; update llm2comp")
        return self

    @classmethod
    def start(cls, recipe: Recipe, prompt_format: str) -> "Lineage":
        """Begin the lineage of a run, without stages."""
        return cls(
            name=recipe.name,
            backbone=recipe.backbone,
            memory=recipe.memory,
            prompt_format=prompt_format,
            prompts=recipe.prompts,
            max_length=recipe.max_length,
            seed=recipe.seed,
            versions={
                "llm2comp": __version__,
                "python": platform.python_version(),
                **{name: importlib.metadata.version(name) for name in PACKAGES},
            },
        )

    @classmethod
    def read(cls, folder: Path) -> "Lineage":
        """Read the lineage of an encoder folder.

        Raises:
            UserError: if the folder is not one of this package's, or of a later version.
        """
        file = folder / LINEAGE
        try:
            return cls.model_validate_json(file.read_bytes())
        except FileNotFoundError as error:
            raise UserError(
                f"{folder} is not an encoder folder of llm2comp: it has no {LINEAGE}"
            ) from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise UserError(f"{file} cannot be used: {where} {first['msg']}") from error

    def write(self, folder: Path) -> None:
        """Write ``llm2comp.json`` in an encoder folder."""
        with atomic_file(folder / LINEAGE) as partial:
            nothing = {"compiled"} if self.compiled is None else None
            text = self.model_dump_json(indent=2, exclude=nothing)
            partial.write_text(text + "\n", encoding="utf-8")

    def after(self, stage: StageRecord) -> "Lineage":
        """Return the lineage with one stage more."""
        return self.model_copy(update={"stages": [*self.stages, stage]})

    def until(self, count: int) -> "Lineage":
        """Return the lineage with the first ``count`` stages only."""
        return self.model_copy(update={"stages": self.stages[:count]})

    @property
    def format(self) -> PromptFormat:
        """How the encoder reads a text."""
        return PROMPT_FORMATS[self.prompt_format]

    @property
    def trained_with_instructions(self) -> bool:
        """Whether queries had a prompt or an instruction in training."""
        sources = [source for stage in self.stages for source in stage.data]
        return any(self.prompts.values()) or any(one.query_instruction for one in sources)
