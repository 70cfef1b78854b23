"""Parts of a recipe: backbone, memory tokens, LoRA, sources, hard negatives, scores."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from llm2comp.errors import counted
from llm2comp.utils.choices import AttnImplementation, Precision, VectorCount
from llm2comp.utils.texts import NotBlank, Prefix
from llm2comp.utils.yaml_files import Strict

PositiveInt = Annotated[int, Field(gt=0)]
Rank = Annotated[int, Field(ge=0)]
Margin = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _distinct(numbers: list[int]) -> list[int]:
    repeated = [number for number in numbers if numbers.count(number) > 1]
    if repeated:
        raise ValueError(f"{repeated[0]} is there twice; leave one out")
    return numbers


def _whole_or_share(number: float) -> float:
    if number >= 1 and not number.is_integer():
        raise ValueError("give a whole number, or a share below 1")
    return number if 0 < number < 1 else int(number)


WarmUp = Annotated[float, Field(ge=0, allow_inf_nan=False), AfterValidator(_whole_or_share)]
"""A number of steps or, below 1, a share of them."""
Dimensions = Annotated[list[PositiveInt], Field(min_length=1), AfterValidator(_distinct)]
"""Numbers of leading dimensions of an embedding, or of first memory tokens."""


class Backbone(Strict):
    """The causal language model that becomes an encoder."""

    name: NotBlank = "smollm2-135m"
    """`smollm2-135m` (packaged), a local folder, a `.gguf` file, or a hub id."""
    dtype: Precision = "auto"
    """Precision of training. `auto` is bfloat16 if the processor computes it natively, and float32
    otherwise."""
    trust_remote_code: bool = False
    """Run the Python code that comes with the model, if it has any. Read the code first."""
    revision: NotBlank | None = None
    """Branch, tag or commit of a hub model. A run keeps the commit with which it began."""
    add_bos: bool | None = None
    """Put BOS before every text. `null`: as the tokenizer itself does; `true`: if there is a BOS.
    An encoder without memory tokens (`mntp`) has it always, for an empty text needs a token."""
    attn_implementation: AttnImplementation | None = None
    """How attention is computed, by the name that transformers has for it. `null`: `sdpa`, and
    without a GPU two matrix products, which are faster there. `flash_attention_2` and
    `flex_attention` need a GPU (docs/guides/memory.md)."""
    load_in_4bit: bool = False
    """Keep the frozen linear layers in 4 bits while a LoRA trains (QLoRA). The LoRA is merged into
    the weights as they were before (docs/guides/memory.md). It needs the extra `qlora`."""

    @model_validator(mode="after")
    def _check_attention(self) -> "Backbone":
        if self.attn_implementation == "flash_attention_2" and self.dtype == "float32":
            raise ValueError(
                "attn_implementation: flash_attention_2 has no float32; set dtype=bfloat16, or "
                "another attn_implementation"
            )
        return self


class Memory(Strict):
    """The k memory tokens that follow a text (paper, section "Context compression")."""

    tokens: Annotated[int, Field(ge=1, le=32)] = 8
    """k, the number of memory tokens."""
    init: Literal["random", "text"] = "random"
    """How the memory embeddings begin. `random`: drawn like the embedding table; `text`: the token
    embeddings of `init_text`."""
    init_text: NotBlank = '\nThis text means in one word:"'
    """The text for `init: text`."""
    scale: Literal["none", "embeddings"] = "none"
    """The size at which the decoder reads memory in stage 1. `none`: as the encoder left it, as in
    the paper; `embeddings`: the mean norm of a token embedding. The embedding of a text is computed
    in the same way with both."""


class Lora(Strict):
    """The LoRA of one stage. It is merged into the weights before the next stage adds its own."""

    r: PositiveInt = 16
    """The rank."""
    alpha: PositiveInt = 32
    """The output of the LoRA is scaled by `alpha / r`."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Dropout on the input of the LoRA, in training only."""
    target_modules: Annotated[list[NotBlank], Field(min_length=1)] | None = None
    """Names of the linear layers that get a LoRA. `null`: those of attention and MLP, except for a
    layer that computes keys alone (docs/guides/own-backbone.md)."""


class DataSource(Strict):
    """One source of rows and its share of the mixture."""

    source: NotBlank
    """A name that `llm2comp data list` shows; a local file, folder of files or pattern
    (`data/*.jsonl.gz`); or a hub id (`owner/name` or `owner/name:configuration`)."""
    split: NotBlank = "train"
    """The split of a dataset of the hub, or of a folder whose files are named after splits."""
    revision: NotBlank | None = None
    """The branch, tag or commit of a dataset of the hub; by default its main branch."""
    columns: dict[NotBlank, NotBlank] = Field(default={})
    """Maps our column (text, anchor, positive, negative, score) to the column of the source."""
    negatives: PositiveInt = 1
    """Pairs only: the most hard negatives of a row. A row with more becomes several rows."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """The share of the mixture, relative to the weights of the other sources."""
    query_instruction: Prefix = ""
    """Pairs only: put before each query, as `instruction:query` and a line break."""
    teacher: NotBlank | None = None
    """Stage 3 only: learn the vectors of this encoder, or the scores of this cross-encoder."""


def dataset_names(sources: Sequence[DataSource]) -> list[str]:
    """Return a name for each source; a source that is there twice is `name` and `name#2`."""
    names = [source.source for source in sources]
    earlier = [names[:place].count(name) for place, name in enumerate(names)]
    return [f"{name}#{n + 1}" if n else name for name, n in zip(names, earlier, strict=True)]


class Passages(Strict):
    """Which passages pretraining takes (paper: at least 1,000 characters, under 512 tokens)."""

    min_chars: int = 1000
    """Shorter passages are left out."""
    max_tokens: PositiveInt = 512
    """Longer passages are left out, or cut to this length if `crop` is set."""
    crop: bool = False
    """Cut passages that are too long."""


class Split(Strict):
    """Where a passage of L tokens is cut into text and continuation.

    The split point is uniform in `[low, L - margin]` (the paper has 10 and 10), or in
    `[low, high]` if `high` is given. If `low` equals `high`, the split is fixed. `reconstruction`
    and `mntp` read the whole passage and do not cut it.
    """

    low: PositiveInt = 10
    """The smallest split point, in tokens."""
    high: PositiveInt | None = None
    """The largest split point; `L - margin` if it is not given."""
    margin: PositiveInt = 10
    """Without `high`: at least this many tokens of the passage come after the split point."""
    continuation: PositiveInt | None = None
    """At most this many tokens are predicted; all that follow if it is not given."""
    per: Literal["sample", "batch"] = "sample"
    """`sample` draws a split point for each passage. `batch` draws one for all passages of a batch,
    so that no text is padded."""
    ramp_steps: Annotated[int, Field(ge=0)] = 0
    """Begin with the fixed split `start`, and widen it linearly to the range in this many steps."""
    start: PositiveInt | None = None
    """The split point to begin with if `ramp_steps` is set."""

    @model_validator(mode="after")
    def _check_range(self) -> "Split":
        if self.high is not None and self.high < self.low:
            raise ValueError(f"high ({self.high}) is below low ({self.low})")
        if self.ramp_steps and self.start is None:
            raise ValueError("ramp_steps needs start, the split point to begin with")
        return self


class HardNegatives(Strict):
    """Which texts of a corpus are hard negatives of a query.

    Texts are ranked by their cosine with the query, and those that answer it have no rank. Of the
    texts of some ranks, those that score too high are left out, and the best of what is left are
    the negatives. The score is the cosine, unless a reranker gives another.
    """

    negatives: Annotated[int, Field(ge=1, le=1000)] = 1
    """Negatives of each pair."""
    ranks: Annotated[list[Rank], Field(min_length=2, max_length=2)] | None = None
    """The first rank that is looked at, and the first that is not, counted from 0 and before the
    margins. The first ranks may hold answers that nobody labelled. `null`: all ranks."""
    relative_margin: Margin = 0.05
    """Leave out texts whose score is above that of the positive less this share of it, as
    NV-Retriever does (arXiv 2407.15831). Of several positives, that with the lowest score counts.
    """
    absolute_margin: Margin = 0.0
    """Leave out texts whose score is above that of the positive less this."""

    @model_validator(mode="after")
    def _check_ranks(self) -> "HardNegatives":
        if self.ranks is not None and self.ranks[1] - self.ranks[0] < self.negatives:
            raise ValueError(
                f"ranks {self.ranks} leave "
                f"{counted(max(0, self.ranks[1] - self.ranks[0]), 'text')} for "
                f"{counted(self.negatives, 'negative')}; give a wider range"
            )
        return self


class Mining(HardNegatives):
    """How stage 3 finds hard negatives."""

    every: PositiveInt | None = None
    """Mine again after so many steps, with the encoder so far; `null`: only before the first."""


class Reading(Strict):
    """How stage 3 keeps memory readable: the objective of stage 1 goes on beside the other loss.

    The frozen backbone, which is loaded beside the encoder, reads the memory of some positives,
    their queries as questions, and the answers that it gives itself after the positives' text. With
    `distillation`, it learns to say the same of both (self-distillation, as in xRAG, arXiv
    2405.13792).
    """

    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """What the loss of the objective is multiplied by before it is added."""
    passages: PositiveInt = 8
    """The most positives of a batch that are read, of those with 24 tokens or more."""


class During(Strict):
    """How an encoder is scored while stages 2 and 3 train."""

    tasks: list[NotBlank] = Field(default=[])
    """Names of tasks, for example `STSBenchmarkDev`. There is a warning if one is a test set."""
    data: NotBlank | None = None
    """Your own file or folder, as `llm2comp evaluate --data` takes it."""
    every: PositiveInt
    """Steps between two scores. There is one before the first step too, and one after the last."""
    keep_best: bool = True
    """The step with the best score is the result of the stage, and not the last one. The mean
    counts if there are several tasks."""
    patience: PositiveInt | None = None
    """End the stage after so many scores in a row that are not better than the best."""

    @model_validator(mode="after")
    def _check_tasks(self) -> "During":
        if not (self.tasks or self.data):
            raise ValueError("name tasks or data to score on")
        return self


class Evaluation(Strict):
    """What `llm2comp train` scores, after each stage and while stages 2 and 3 train."""

    tasks: list[NotBlank] = Field(default=["STSBenchmark", "STS17", "SQuADRetrieval"])
    """Names of tasks; an empty list scores nothing."""
    quick: bool = True
    """Use the quick sizes of the tasks."""
    baselines: list[NotBlank] = Field(default=[])
    """Training-free encoders of the backbone that are scored too."""
    vectors: VectorCount = "one"
    """`one`: score the embedding of a text; `k`: its k memory vectors with MaxSim, on tasks of
    retrieval and STS. `during` always scores the embedding."""
    during: During | None = None
    """Score while a stage trains, to see whether it gets better."""

    @model_validator(mode="after")
    def _check_vectors(self) -> "Evaluation":
        if self.vectors == "k" and self.baselines:
            raise ValueError(
                "vectors: k is for memory tokens, and baselines have none; leave it out"
            )
        return self

    @property
    def deciding(self) -> dict[str, Any] | None:
        """What chooses the step that a stage ends with; None if scores only inform."""
        if self.during is None or not (self.during.keep_best or self.during.patience):
            return None
        sizes = {"quick": self.quick} if self.during.tasks else {}
        return self.during.model_dump() | sizes
