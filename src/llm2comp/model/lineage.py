"""The lineage of an encoder: `llm2comp.json` in its folder, which says how it was made."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from llm2comp.errors import UserError
from llm2comp.model.backbone import licence_of
from llm2comp.model.folder.names import base_name, encoder_name
from llm2comp.model.folder.reference import SAME_ELSEWHERE, Reference
from llm2comp.model.folder.versions import versions
from llm2comp.model.prompt_format import PROMPT_FORMATS, PromptFormat, in_words, own_prompts
from llm2comp.recipe import Recipe, StageBase
from llm2comp.recipe_parts import Backbone, DataSource, Memory
from llm2comp.utils.choices import Backend
from llm2comp.utils.files import atomic_file

LINEAGE = "llm2comp.json"
FORMAT_VERSION = 2
"""llm2comp 0.1 wrote version 1, which has neither this number nor the prompt format."""
_FORMATS_OF_VERSION_1 = {"mntp": "text", "embedding_prediction": "summarize"}
"""Prompt formats in version 1 by pretext objective; all other objectives used `memory`."""

_NUMBERS = re.compile(r"\[[-+.\de,\s]+\]")
"""A list of numbers in JSON."""


class StageRecord(BaseModel):
    """A stage that was trained: its settings in the recipe, and the encoder's attention after it.

    Unknown keys are kept, so that a folder of another version loses nothing.

    Attributes:
        stage: `pretext`, `unsupervised` or `supervised`.
        objective: of a pretext stage.
        data: sources of its texts.
        steps: of the optimizer; 0 if the stage trained nothing.
        batch_size: texts or pairs per step.
        kept_step: the step whose weights the encoder has; None if it is the last one.
        matryoshka: numbers of leading dimensions that were trained; None if only the whole was.
        matryoshka_tokens: numbers of first memory tokens that were trained; None if only all were.
        reading: how memory was kept readable; None if it was not.
        learning_rate: the highest.
        causal: whether the encoder's attention is causal; None if the encoder began as one of
            others, whose attention is left as it is.
        layers: of the backbone; None in folders of older versions.
        attending: layers that have attention. The others have, for example, a convolution.
        lora: rank, scale and dropout of the LoRA, its `target_modules`, and `left_out`, the layers
            of the blocks without one. Folders of older versions have no `left_out`. None if all
            weights were trained.
        prompts: what stood before queries (`query`) and other texts (`document`) of the sources
            without a prompt of their own.
        row_prompts: for each source, the prompts that its rows had before their queries.
    """

    model_config = ConfigDict(extra="allow")

    stage: str
    objective: str | None = None
    data: list[DataSource]
    steps: int
    kept_step: int | None = None
    batch_size: int
    matryoshka: list[int] | None = None
    matryoshka_tokens: list[int] | None = None
    reading: dict[str, Any] | None = None
    learning_rate: float
    causal: bool | None
    layers: int | None = None
    attending: int | None = None
    lora: dict[str, Any] | None = Field(default={})
    prompts: dict[str, str] = Field(default={})
    row_prompts: list[list[str]] = Field(default=[])

    @classmethod
    def of(
        cls,
        stage: StageBase,
        *,
        causal: bool | None,
        lora: dict[str, Any],
        prompts: dict[str, str] | None = None,
        row_prompts: list[list[str]] | None = None,
        step: int | None = None,
    ) -> "StageRecord":
        """Record a stage of a recipe.

        Args:
            stage: as the recipe has it.
            causal: whether the encoder's attention is causal after the stage.
            lora: what was adapted, as `llm2comp.model.lora_targets.Adapted.record` returns it.
            prompts: the attribute of that name.
            row_prompts: the attribute of that name.
            step: whose weights the encoder has; the last one by default.
        """
        settings = stage.model_dump()
        if stage.lora is not None:
            settings["lora"] |= lora
        if step is not None and step != stage.steps:
            settings["kept_step"] = step
        if not stage.steps:
            settings["data"] = []  # no text was read
        before = {"prompts": prompts or {}, "row_prompts": row_prompts or []}
        return cls.model_validate(settings | before | {"causal": causal})

    @property
    def query_prompts(self) -> set[str]:
        """What stood before queries in training, an empty text left out."""
        bare = self.prompts.get("query", "")
        own = own_prompts(self.data, self.row_prompts)
        return set().union(*(prompts or {bare} for prompts in own)) - {""}


class Compiled(BaseModel):
    """What an encoder was compiled for, with the figures of its check as further keys.

    Attributes:
        to: the back end.
        int8: whether the weights have 8 bits.
        allowed: largest cosine distance to the encoder in PyTorch and float32 that was allowed.
    """

    model_config = ConfigDict(extra="allow")

    to: Backend
    int8: bool
    allowed: float = SAME_ELSEWHERE


class Base(BaseModel):
    """An encoder that a run started from.

    Attributes:
        name: as the recipe has it. In a folder, one that was local has its last part alone, and
            the name of its run before it: `first/model`.
        revision: commit of a model of the hub.
        fingerprint: of its files, see `llm2comp.utils.checksums.fingerprint`.
        stages: how many stages of this package had made it; 0 if others made it.
        seed: of the run that made it; None if others made it.
    """

    model_config = ConfigDict(extra="allow")

    name: str
    revision: str | None = None
    fingerprint: str
    stages: int = 0
    seed: int | None = None


class Lineage(BaseModel):
    """How an encoder was made.

    An encoder that began as one of others has neither a backbone nor memory tokens.

    Attributes:
        format_version: of `llm2comp.json`.
        name: of the recipe.
        backbone: the causal language model. In a folder, one that was local has its name alone.
        bases: the encoders that runs started from, in order; empty after a run from a backbone.
        licence: of the backbone or of the encoder of others, as the hub abbreviates it; None if it
            is not known.
        memory: number, initialisation and scale of the memory tokens.
        prompt_format: a key of `llm2comp.model.prompt_format.PROMPT_FORMATS`.
        prompts: for queries and documents.
        max_length: tokens per text, without BOS, prompts and memory tokens; for an encoder of
            others, with all of them, and None if it has no limit.
        seed: of the last run.
        stages: that were trained so far, in order.
        versions: of Python and of the packages that made the encoder.
        reference: embeddings that a client must compute too; None in folders of older versions.
        compiled: what a compiled encoder was compiled for; None for other encoders.
        dtype: of the weights in the folder; None if it is float32.
        last_token: whether the folder has pooling of the last token in the place of `WordWeights`.
        kept_tokens: memory tokens of an export that appends only the first; None if it has all.
    """

    model_config = ConfigDict(extra="allow")

    format_version: int = FORMAT_VERSION
    name: str
    backbone: Backbone | None
    bases: list[Base] = Field(default=[])
    licence: str | None = None
    memory: Memory | None
    prompt_format: str | None
    prompts: dict[str, str]
    max_length: int | None
    seed: int
    stages: list[StageRecord] = Field(default=[])
    versions: dict[str, str] = Field(default={})
    reference: Reference | None = None
    compiled: Compiled | None = None
    dtype: Literal["bfloat16"] | None = None
    last_token: bool = False
    kept_tokens: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_version_1(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and "format_version" not in raw and raw.get("stages"):
            objective = raw["stages"][0].get("objective")
            known = {"prompt_format": _FORMATS_OF_VERSION_1.get(objective, "memory")}
            return known | raw | {"format_version": FORMAT_VERSION}
        return raw

    @model_validator(mode="before")
    @classmethod
    def _before_the_choice_of_bos(cls, raw: Any) -> Any:
        """Add `add_bos` to a lineage of a version that put BOS before every text."""
        if isinstance(raw, dict) and isinstance(raw.get("backbone"), dict):
            return raw | {"backbone": {"add_bos": True} | raw["backbone"]}
        return raw

    @model_validator(mode="after")
    def _known_format(self) -> "Lineage":
        if self.format_version > FORMAT_VERSION:
            raise ValueError(f"format {self.format_version} is of a later llm2comp; update it")
        parts = (self.backbone, self.memory, self.prompt_format)
        if any(parts) != all(parts) or not (all(parts) or self.bases):
            raise ValueError("backbone, memory or prompt_format is missing; restore the file")
        if self.prompt_format not in (None, *PROMPT_FORMATS):
            raise ValueError(f"prompt format {self.prompt_format!r} is unknown; update llm2comp")
        return self

    @classmethod
    def start(cls, recipe: Recipe, prompt_format: str) -> "Lineage":
        """Return the lineage of a run before its first stage.

        Args:
            recipe: of the run.
            prompt_format: of the pretext objective.
        """
        return cls(
            name=recipe.name,
            backbone=recipe.backbone,
            licence=licence_of(recipe.backbone.name, recipe.backbone.revision),
            memory=recipe.memory,
            prompt_format=prompt_format,
            prompts=recipe.prompts,
            max_length=recipe.max_length,
            seed=recipe.seed,
            versions=versions(),
        )

    @classmethod
    def of_others(
        cls, recipe: Recipe, base: Base, prompts: dict[str, str], max_length: int | None
    ) -> "Lineage":
        """Return the lineage of a run from an encoder of others, before its first stage.

        Args:
            recipe: of the run.
            base: the encoder.
            prompts: of the encoder.
            max_length: of the encoder, in tokens.
        """
        return cls(
            name=recipe.name,
            backbone=None,
            bases=[base],
            memory=None,
            prompt_format=None,
            prompts=prompts | recipe.given_prompts,
            max_length=max_length,
            seed=recipe.seed,
            versions=versions(),
        )

    def continued(self, recipe: Recipe, base: Base) -> "Lineage":
        """Return the lineage of a run from the encoder of this one, before its first stage.

        Args:
            recipe: of the run.
            base: the encoder of this lineage.
        """
        made = base.model_copy(update={"stages": len(self.stages), "seed": self.seed})
        return self.model_copy(
            update={
                "name": recipe.name,
                "bases": [*self.bases, made],
                "prompts": self.prompts | recipe.given_prompts,
                "seed": recipe.seed,
                "versions": versions(),
                "reference": None,
            }
        )

    @classmethod
    def read(cls, folder: Path) -> "Lineage":
        """Read the lineage of an encoder folder.

        Raises:
            UserError: if the folder has no lineage, or one that this version cannot read.
        """
        file = folder / LINEAGE
        try:
            return cls.model_validate_json(file.read_bytes())
        except FileNotFoundError as error:
            raise UserError(
                f"{folder} is not an encoder folder of llm2comp: it has no {LINEAGE}"
            ) from error
        except ValidationError as error:
            detail = error.errors()[0]
            key = ".".join(map(str, detail["loc"]))
            raise UserError(f"{file} cannot be used: {key} {detail['msg']}") from error

    def write(self, folder: Path) -> None:
        """Write `llm2comp.json` into an encoder folder."""
        with atomic_file(folder / LINEAGE) as partial:
            optional = "licence reference compiled bases dtype last_token kept_tokens"
            unset = {name for name in optional.split() if not getattr(self, name)}
            text = self.model_dump_json(indent=2, exclude=unset)
            one_line = _NUMBERS.sub(lambda row: " ".join(row[0].split()), text)
            partial.write_text(one_line + "\n", encoding="utf-8")

    def after(self, stage: StageRecord) -> "Lineage":
        """Return the lineage after one more stage."""
        return self.model_copy(update={"stages": [*self.stages, stage]})

    def until(self, count: int) -> "Lineage":
        """Return the lineage after the first `count` stages."""
        return self.model_copy(update={"stages": self.stages[:count]})

    def without_paths(self) -> "Lineage":
        """Return the lineage without the folders of the machine on which the encoder was made."""
        raw = self.model_dump()
        if self.backbone is not None:
            raw["backbone"]["name"] = base_name(self.backbone.name)
        for base in raw["bases"]:
            base["name"] = encoder_name(base["name"])
        for stage in raw["stages"]:
            for source in stage["data"]:
                source["source"] = base_name(source["source"])
            if stage.get("start_from"):
                stage["start_from"] = encoder_name(stage["start_from"])
        return Lineage.model_validate(raw)

    @property
    def allowed_difference(self) -> float:
        """Largest cosine distance from the reference that counts as rounding."""
        return self.compiled.allowed if self.compiled else SAME_ELSEWHERE

    @property
    def method(self) -> tuple[Backbone, Memory, PromptFormat] | None:
        """What the encoder is made of; None if it began as one of others."""
        if self.backbone is None or self.memory is None or self.prompt_format is None:
            return None
        return self.backbone, self.memory, PROMPT_FORMATS[self.prompt_format]

    @property
    def num_memory_tokens(self) -> int:
        """The number of memory tokens after every text."""
        if self.method is None:
            return 0
        _, memory, prompt_format = self.method
        return self.kept_tokens or prompt_format.num_memory_tokens(memory.tokens)

    @property
    def matryoshka(self) -> list[int]:
        """Numbers of dimensions that the last stage trained; later stages undo earlier ones."""
        return list(self.stages[-1].matryoshka or []) if self.stages else []

    @property
    def token_counts(self) -> list[int]:
        """Numbers of first memory tokens that the last stage trained, largest first; or none."""
        counts = (self.stages[-1].matryoshka_tokens if self.stages else None) or []
        return sorted((n for n in counts if n <= self.num_memory_tokens), reverse=True)

    @property
    def trained_with_instructions(self) -> bool:
        """Whether queries had a prompt or an instruction in training."""
        own = [one for stage in self.stages for one in own_prompts(stage.data, stage.row_prompts)]
        return any(self.prompts.values()) or any(own)

    def prompt_mismatch(self, prompts: Mapping[str, str | None]) -> str | None:
        """Say where an encoder's prompts are not those of its last supervised stage.

        Args:
            prompts: of the encoder, by name.

        Returns:
            One line; None if they are the same, or no stage was supervised.
        """
        last = next((s for s in reversed(self.stages) if s.stage == "supervised"), None)
        if last is None:
            return None
        document = last.prompts.get("document", "")
        for name, trained in (("query", last.query_prompts), ("document", {document} - {""})):
            stored = prompts.get(name) or ""
            if stored not in (trained or {""}):
                return (
                    f"in training {in_words(trained)} stood before each {name}, and encode_{name} "
                    f"puts {stored!r} before it"
                )
        return None
