"""What a run is: a recipe names a backbone, its memory tokens, the stages and the tasks.

A recipe is a YAML file checked by the models below. Unknown keys are errors
that name the nearest known key; ``key=value`` overrides use dotted paths, with
a stage addressed by its name (``pretext.steps=100``).
"""

import copy
import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from llm2comp.errors import UserError
from llm2comp.utils.choices import Attention, OnBadRow, Precision

PositiveInt = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]


class Strict(BaseModel):
    """A mapping of known keys."""

    model_config = ConfigDict(extra="forbid")


class Backbone(Strict):
    """The causal language model that becomes an encoder."""

    name: str = "smollm2-135m"
    """A packaged default, a local folder, a ``.gguf`` file, or a hub id."""
    dtype: Precision = "auto"
    """Compute precision in training; ``auto`` is bfloat16 where the processor has it."""
    trust_remote_code: bool = False


class Memory(Strict):
    """The k memory tokens behind a text (paper, section "Context compression")."""

    tokens: Annotated[int, Field(ge=1, le=32)] = 8
    init: Literal["random", "text"] = "random"
    """``random``: drawn like the embedding table; ``text``: the rows of ``init_text``."""
    init_text: str = '\nThis text means in one word:"'
    scale: Literal["none", "embeddings"] = "none"
    """``embeddings``: the decoder reads each memory token at the mean norm of a token embedding;
    ``none``: as it left the encoder, as in the paper. The text's embedding is the same."""


class Lora(Strict):
    """LoRA of one stage; merged before the next stage adds its own."""

    r: PositiveInt = 16
    alpha: PositiveInt = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    target_modules: list[str] = ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class DataSource(Strict):
    """One source of rows and its share of the mixture."""

    source: str
    """A name of ``llm2comp data list``, a local .txt/.jsonl/.csv/.parquet, or a hub id."""
    split: str = "train"
    columns: dict[str, str] = {}
    """Maps our column (text, anchor, positive, negative) to the source's."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    query_instruction: str = ""
    """Pairs only: put before each query as ``instruction + ":" + query + "\\n"``."""


class Passages(Strict):
    """Which passages pretraining takes (paper: at least 1,000 characters, under 512 tokens)."""

    min_chars: int = 1000
    max_tokens: PositiveInt = 512
    """Longer passages are dropped, or cut when ``crop`` is set."""
    crop: bool = False


class Split(Strict):
    """Where a passage of L tokens is cut into text and continuation.

    Uniform in ``[low, L - margin]`` (the paper has 10 and 10), or in
    ``[low, high]`` when ``high`` is given; ``low == high`` is a fixed split.
    """

    low: PositiveInt = 10
    high: PositiveInt | None = None
    margin: PositiveInt = 10
    continuation: PositiveInt | None = None
    """At most this many tokens are predicted; all that follow, when not given."""
    per: Literal["sample", "batch"] = "sample"
    """``batch`` cuts all passages of a batch alike, so that nothing is padded."""
    ramp_steps: Annotated[int, Field(ge=0)] = 0
    """Start at the fixed split ``start`` and widen linearly to the range in this many steps."""
    start: PositiveInt | None = None

    @model_validator(mode="after")
    def _ordered(self) -> "Split":
        if self.high is not None and self.high < self.low:
            raise ValueError(f"high ({self.high}) is below low ({self.low})")
        if self.ramp_steps and self.start is None:
            raise ValueError("ramp_steps needs start, the split to begin from")
        return self


class StageBase(Strict):
    """What every stage is told: data, adapter, attention and optimiser."""

    stage: str
    data: Annotated[list[DataSource], Field(min_length=1)]
    lora: Lora = Lora()
    attention: Attention | None = None
    """The encoder's attention from this stage on; ``None`` keeps what the stage before had."""
    steps: PositiveInt
    batch_size: PositiveInt
    learning_rate: Annotated[float, Field(gt=0)]
    memory_learning_rate: Annotated[float, Field(gt=0)] | None = None
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    scheduler: Literal["linear", "cosine", "constant_with_warmup"] = "cosine"
    weight_decay: NonNegative = 0.0
    max_grad_norm: NonNegative = 1.0
    save_steps: PositiveInt = 50
    log_steps: PositiveInt = 10
    gradient_checkpointing: bool = False
    compile: bool = False
    """``torch.compile`` of the blocks: steps take about a tenth less after a minute of compiling;
    needs a C++ compiler, or Triton on a GPU."""


class Pretext(StageBase):
    """Stage 1: learn to compress."""

    stage: Literal["pretext"] = "pretext"
    batch_size: PositiveInt
    """Passages on average: they are grouped by length, so that batches have as many tokens."""
    objective: str = "distillation"
    passages: Passages = Passages()
    split: Split = Split()
    attention: Attention | None = "causal"
    bidirectional_from_step: int | None = None
    """Opens a causal encoder's attention at this step."""
    start_from: str | None = None
    """A trained stage 1 (folder or released name) whose LoRA and memory rows to start from."""
    eval_steps: PositiveInt = 20
    eval_passages: PositiveInt = 64


class Contrastive(StageBase):
    """What UCL and SCL share."""

    temperature: Annotated[float, Field(gt=0)] = 0.05
    mini_batch_size: PositiveInt = 32
    """Texts in memory at once; a batch of scored pairs is not split."""
    max_length: PositiveInt = 512
    """Tokens of a text in training, memory tokens not counted; text beyond is cut."""
    eval_steps: PositiveInt = 20
    eval_pairs: Annotated[int, Field(ge=0)] = 32
    """Held out to watch loss, effective dimension and cosines; 0 to watch nothing."""


class Unsupervised(Contrastive):
    """Stage 2 (UCL): SimCSE, the same text twice under different dropout."""

    stage: Literal["unsupervised"] = "unsupervised"
    attention_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2


class Supervised(Contrastive):
    """Stage 3 (SCL): query, positive and hard negative, with in-batch negatives; scored pairs."""

    stage: Literal["supervised"] = "supervised"


Stage = Annotated[Pretext | Unsupervised | Supervised, Field(discriminator="stage")]


class Evaluation(Strict):
    """What ``llm2comp train`` scores after each stage."""

    tasks: list[str] = ["STSBenchmark", "STS17", "SQuADRetrieval"]
    quick: bool = True
    baselines: list[str] = []


class Recipe(Strict):
    """A whole run."""

    name: str
    seed: int = 0
    backbone: Backbone = Backbone()
    memory: Memory = Memory()
    prompts: dict[str, str] = {"query": "", "document": ""}
    max_length: PositiveInt = 512
    """Tokens of a text that the encoder reads, memory tokens not counted; the rest is cut."""
    stages: Annotated[list[Stage], Field(min_length=1)]
    evaluation: Evaluation = Evaluation()
    on_bad_row: OnBadRow = "fail"

    @model_validator(mode="after")
    def _one_of_each_in_order(self) -> "Recipe":
        order = ["pretext", "unsupervised", "supervised"]
        names = [stage.stage for stage in self.stages]
        if names != [name for name in order if name in names]:
            raise ValueError(f"stages are {names}; each may stand once, in the order {order}")
        return self


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read and check a recipe, with ``dotted.key=value`` overrides applied first.

    Raises:
        UserError: if the file is missing, is not YAML, or says something unknown;
            the message names the file, the key and the nearest known key.
    """
    return parse(read_yaml(path, "recipe"), overrides or [], f"recipe {path}")


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """Read a mapping of keys.

    Raises:
        UserError: if the file is missing or holds something else; ``what`` says what it should be.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{what} {path} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{what} {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{what} {path} must be a mapping of keys, see those of recipes/")
    return raw


def parse(raw: dict[str, Any], overrides: list[str], where: str) -> Recipe:
    """Check a recipe that was read, with overrides.

    Raises:
        UserError: if it says something unknown; the message begins with ``where``.
    """
    try:
        return Recipe.model_validate(changed(raw, overrides))
    except ValidationError as error:
        raise UserError(f"{where}: {explain(error)}") from error


def changed(raw: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Return a copy of a recipe that was read, with overrides applied.

    Raises:
        UserError: if an override cannot be applied.
    """
    raw = copy.deepcopy(raw)
    for override in overrides:
        _apply(raw, override)
    return raw


def _apply(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"override {override!r} is not of the form key=value")
    *parents, last = key.split(".")
    node: Any = raw
    for parent in parents:
        stages = raw.get("stages") or []
        named = [s for s in stages if isinstance(s, dict) and s.get("stage") == parent]
        node = named[0] if node is raw and named else _child(node, parent, override)
    if isinstance(node, list):
        node[_index(node, last, override)] = yaml.safe_load(text)
    else:
        node[last] = yaml.safe_load(text)


def _child(node: Any, key: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, key, override)]
    child = node.setdefault(key, {})
    if not isinstance(child, dict | list):
        raise UserError(f"override {override!r}: {key!r} holds a value, not further keys")
    return child


def _index(node: list[Any], key: str, override: str) -> int:
    if not key.isdigit() or int(key) >= len(node):
        raise UserError(f"override {override!r}: {key!r} is not one of 0 to {len(node) - 1}")
    return int(key)


def explain(error: ValidationError) -> str:
    """Say the first thing that is wrong in one line, with the nearest known key."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] != "extra_forbidden":
        return f"{where or 'recipe'}: {first['msg']} (got {_short(first['input'])})"
    known = sorted(_known_keys(error.title))
    nearest = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0)
    return f"{where}: unknown key; did you mean {nearest[0]!r}?"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _known_keys(root: str) -> Iterator[str]:
    """Yield the keys of the model called ``root``, and of those defined beside it."""
    models = list(_models(Strict))
    modules = {model.__module__ for model in models if model.__name__ == root}
    for model in models:
        if model.__module__ in modules:
            yield from model.model_fields


def _models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for child in model.__subclasses__():
        yield child
        yield from _models(child)


_PACKAGE = Path(__file__).parent


def recipe_path(name: str) -> Path:
    """Return the file of a recipe given as a path or as a shipped name (``demo``).

    Raises:
        UserError: if it is neither.
    """
    return _find(name, "recipe", "*.yaml")


def study_path(name: str) -> Path:
    """Return the file of a study given as a path or as a shipped name (``pretext``).

    Raises:
        UserError: if it is neither.
    """
    return _find(name, "study", "study/*.yaml")


def _find(name: str, what: str, pattern: str) -> Path:
    given = Path(name).expanduser()
    if given.is_file():
        return given
    # A wheel carries recipes/ inside the package; a checkout has it at its root.
    for folder in (_PACKAGE / "shipped_recipes", _PACKAGE.parents[1] / "recipes"):
        shipped = {file.stem: file for file in sorted(folder.glob(pattern))}
        if name in shipped:
            return shipped[name]
        if shipped:
            raise UserError(f"{what} {name}: no such file; shipped are {', '.join(shipped)}")
    raise UserError(f"{what} {name}: no such file")


STAGE_FOLDERS = {
    "pretext": "1-pretext",
    "unsupervised": "2-unsupervised",
    "supervised": "3-supervised",
}
