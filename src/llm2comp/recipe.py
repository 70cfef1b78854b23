"""What a run is: a recipe names a backbone, its memory tokens, the stages and the tasks.

A recipe is a YAML file, which the models below check. The reference of the recipe in the
documentation is made from the docstrings of the keys.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from llm2comp.errors import UserError
from llm2comp.recipe_parts import (
    Backbone,
    DataSource,
    Dimensions,
    Evaluation,
    Lora,
    Memory,
    Mining,
    Passages,
    PositiveInt,
    Reading,
    Split,
    WarmUp,
)
from llm2comp.utils.choices import Attention, OnBadRow, SavedPrecision, VectorCount
from llm2comp.utils.files import find_shipped
from llm2comp.utils.texts import NotBlank, Prefix
from llm2comp.utils.yaml_files import (
    Strict,
    apply_overrides,
    explain_validation_error,
    read_yaml,
)

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class StageBase(Strict):
    """What every stage has: data, LoRA, attention and optimiser."""

    stage: str
    """The name of the stage."""
    data: Annotated[list[DataSource], Field(min_length=1)]
    """The sources of text."""
    lora: Lora | None = Lora()
    """The LoRA that this stage trains; `null` trains all weights (stages 2 and 3)."""
    attention: Attention | None = None
    """Attention of the encoder from this stage on; `null` keeps that of the stage before."""
    steps: PositiveInt
    """Steps of the optimiser."""
    batch_size: PositiveInt
    """Rows per step, of all processes. In stages 2 and 3 the other rows are negatives."""
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """The peak learning rate."""
    memory_learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """The peak learning rate of the memory embeddings; `learning_rate` if it is not given."""
    warmup_steps: WarmUp = 0
    """Steps in which the learning rate rises from 0 to its peak; below 1, a share of all steps."""
    scheduler: Literal["linear", "cosine", "constant_with_warmup"] = "cosine"
    """The course of the learning rate after the peak."""
    weight_decay: NonNegative = 0.0
    """Weight decay of AdamW."""
    max_grad_norm: NonNegative = 1.0
    """Gradients are clipped to this norm; 0 clips nothing."""
    save_steps: PositiveInt = 50
    """Steps between checkpoints. A run that was stopped continues from the last one."""
    log_steps: PositiveInt = 10
    """Steps between the lines of `run.jsonl` with loss and learning rate."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass, which saves memory and costs time."""
    compile: bool = False
    """Use `torch.compile` for the blocks. Steps take about a tenth less time, after a minute of
    compiling. It needs a C++ compiler, or Triton on a GPU."""


class Pretext(StageBase):
    """Stage 1: learn to compress."""

    stage: Literal["pretext"] = "pretext"
    """The name of the stage."""
    steps: Annotated[int, Field(ge=0)]
    """Steps of the optimiser. 0 trains nothing: the encoder is the backbone with memory tokens as
    they begin or, for `mntp`, with mean pooling, which then may be causal."""
    batch_size: PositiveInt
    """Passages per step, on average. Passages are grouped by length, and all batches have about the
    same number of tokens."""
    objective: str = "distillation"
    """`distillation`, `continuation`, `reconstruction`, `prefix_reconstruction`, `mntp` or
    `embedding_prediction`."""
    masking: Literal["bert", "all"] = "bert"
    """For `mntp`, what a drawn token becomes. `bert`: the mask token (80 %), a random token (10 %)
    or itself, as LLM2Vec trains Llama; `all`: the mask token, as it trains Mistral."""
    mask_probability: Annotated[float, Field(gt=0, le=1)] = 0.2
    """For `mntp`, the share of tokens that are drawn. LLM2Vec: 0.2 for Llama, 0.8 for Mistral."""
    lora: Lora = Lora()
    """The LoRA that this stage trains. Without it, the model is the teacher."""
    passages: Passages = Passages()
    """Which passages are taken."""
    split: Split = Split()
    """Where a passage is cut into text and continuation."""
    attention: Attention | None = "causal"
    """Attention of the encoder."""
    bidirectional_from_step: int | None = None
    """Make the attention of a causal encoder bidirectional at this step, which is below `steps`."""
    start_from: NotBlank | None = None
    """A trained stage 1 (folder such as `runs/first/1-pretext`, or released name) of the same
    backbone. Its LoRA and memory embeddings are trained further."""
    eval_steps: PositiveInt = 20
    """Steps between evaluations on the held-out passages."""
    eval_passages: Annotated[int, Field(ge=2)] = 64
    """Passages that are held out."""

    @model_validator(mode="after")
    def _check_attention(self) -> "Pretext":
        opens = self.bidirectional_from_step
        if opens is not None and self.attention == "bidirectional":
            raise ValueError("attention is bidirectional; leave it or bidirectional_from_step out")
        if opens is not None and opens >= self.steps:
            raise ValueError(
                f"steps: {self.steps} never reaches bidirectional_from_step: {opens}; make it less "
                "than steps, or set attention instead"
            )
        return self


class Contrastive(StageBase):
    """What stages 2 and 3 have in common."""

    temperature: Annotated[float, Field(gt=0)] = 0.05
    """The loss divides cosines by it."""
    mini_batch_size: PositiveInt = 32
    """Texts in memory at once, of a process. It changes the cost and not the result. A batch with
    scores or a teacher is not split."""
    mini_batch_tokens: PositiveInt | None = None
    """If given, tokens in memory at once, padding included; `mini_batch_size` holds beside it."""
    matryoshka: Dimensions | None = None
    """If given, the losses of embeddings that are truncated to so many dimensions are added, the
    whole embedding's included: `[576, 256, 128, 64]` (docs/guides/small-vectors.md)."""
    matryoshka_tokens: Dimensions | None = None
    """If given, the losses of embeddings of so many first memory tokens are added, the whole
    number included: `[8, 4, 2, 1]` (docs/guides/fewer-memory-tokens.md)."""
    max_length: PositiveInt = 512
    """Tokens of a text in training, without the memory tokens. The rest of the text is cut."""
    eval_steps: PositiveInt = 20
    """Steps between evaluations on the held-out rows."""
    eval_pairs: Annotated[int, Field(ge=0)] = 32
    """Rows that are held out, to measure loss, effective dimension and cosines; 0 for none."""

    @model_validator(mode="after")
    def _check_keys(self) -> "Contrastive":
        if self.lora is None and self.memory_learning_rate is not None:
            raise ValueError("memory_learning_rate needs a lora; without it all weights have one")
        if self.matryoshka and self.matryoshka_tokens:
            raise ValueError("matryoshka_tokens cannot be trained with matryoshka; leave one out")
        return self


class Unsupervised(Contrastive):
    """Stage 2 (UCL): two views of a text are a pair, and dropout differs between them."""

    stage: Literal["unsupervised"] = "unsupervised"
    """The name of the stage."""
    attention_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Dropout of the attention. With `views: dropout`, it makes the two embeddings differ."""
    views: Literal["dropout", "crop"] = "dropout"
    """`dropout`: both are the whole text (SimCSE); `crop`: each is a random span of 10 to 50 % of
    its words, 8 or more (Contriever). Texts of fewer than 16 words are then left out."""

    @model_validator(mode="after")
    def _check_views(self) -> "Unsupervised":
        dropouts = (self.attention_dropout, 0 if self.lora is None else self.lora.dropout)
        if self.views == "dropout" and not any(dropouts):
            raise ValueError(
                "without dropout both views are the same; set attention_dropout or lora.dropout "
                "above 0, or views: crop"
            )
        return self


class Supervised(Contrastive):
    """Stage 3 (SCL): pairs of query and positive, with hard negatives or scores if there are any.

    Sources with scores are trained with CoSENT, all others with InfoNCE and in-batch negatives.
    """

    stage: Literal["supervised"] = "supervised"
    """The name of the stage."""
    mining: Mining | None = None
    """If given, the encoder finds hard negatives among the drawn positives of each source of pairs
    that has no negatives, no scores and no teacher."""
    guide: NotBlank | None = None
    """An encoder, named as for `llm2comp.load`, that tells false negatives: what it scores above
    the positive is no negative (GISTEmbed, arXiv 2402.16829)."""
    vectors: VectorCount = "one"
    """`one`: train the embedding of a text; `k`: add the loss of its k memory vectors, compared by
    MaxSim (docs/guides/late-interaction.md)."""
    reading: Reading | None = None
    """If given, memory stays readable to the language model (docs/guides/answer-from-memory.md)."""

    @model_validator(mode="after")
    def _check_combinations(self) -> "Supervised":
        teachers = [source.teacher for source in self.data if source.teacher is not None]
        for key, given in {
            "matryoshka": self.matryoshka,
            "matryoshka_tokens": self.matryoshka_tokens,
            "guide": self.guide,
            "teacher": teachers,
        }.items():
            if self.vectors == "k" and given:
                raise ValueError(f"vectors: k cannot be trained with {key}; leave one of them out")
        if self.reading and self.matryoshka_tokens:
            raise ValueError("reading cannot be trained with matryoshka_tokens; leave one out")
        return self


Stage = Annotated[Pretext | Unsupervised | Supervised, Field(discriminator="stage")]

STAGE_FOLDERS = {
    "pretext": "1-pretext",
    "unsupervised": "2-unsupervised",
    "supervised": "3-supervised",
}
"""The folder of each stage within a run, in the order of the stages."""


class Recipe(Strict):
    """A whole run."""

    name: NotBlank
    """The name of the run. The model card shows it."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """The seed of the order of the data, of dropout, of split points and of new weights."""
    backbone: Backbone = Backbone()
    """The language model to start from. With `base`: how the base is loaded and trained."""
    base: NotBlank | None = None
    """An encoder to start from in place of a backbone: a folder, a released name (also
    `NAME/2-unsupervised`), `minilm`, or a hub id. It fixes `memory`, `max_length`, `backbone.name`
    and `backbone.add_bos`, so they are left out, and so is the stage `pretext`."""
    memory: Memory = Memory()
    """The memory tokens."""
    prompts: dict[NotBlank, Prefix] = Field(default={"query": "", "document": ""})
    """What `encode_query` and `encode_document` put before a text. An empty `query` becomes the
    instruction or the prompt that queries are trained with, if there is one only. With `base`:
    changes to the base's prompts; `supervised` trains with `query` and `document`."""
    max_length: PositiveInt = 512
    """Tokens of a text that the encoder reads, without the memory tokens. The rest is cut."""
    save_dtype: SavedPrecision = "float32"
    """Precision of the weights in encoder folders; `bfloat16` takes half the space. LoRA is
    merged in float32, each weight is rounded once, and the next stage starts from rounded ones."""
    stages: Annotated[list[Stage], Field(min_length=1)]
    """Each stage at most once, in the order `pretext`, `unsupervised`, `supervised`."""
    evaluation: Evaluation = Evaluation()
    """What is scored after each stage."""
    report_to: list[NotBlank] = Field(default=[])
    """Trackers that get losses and scores, as the Trainer of transformers names them: `wandb`,
    `mlflow`. TensorBoard needs no entry."""
    on_bad_row: OnBadRow = "fail"
    """What a bad row of data does. `fail` stops the run; `skip` leaves the row out."""

    @property
    def lacks_query_prompt(self) -> bool:
        """Whether queries are trained with several instructions, and no query prompt is chosen."""
        sources = [source for stage in self.stages for source in stage.data]
        instructions = {source.query_instruction for source in sources} - {""}
        return len(instructions) > 1 and not self.prompts.get("query")

    @property
    def given_prompts(self) -> dict[str, str]:
        """The prompts that the recipe itself names."""
        return self.prompts if "prompts" in self.model_fields_set else {}

    @model_validator(mode="after")
    def _check_order(self) -> "Recipe":
        names = [stage.stage for stage in self.stages]
        if names != [name for name in STAGE_FOLDERS if name in names]:
            order = ", ".join(STAGE_FOLDERS)
            raise ValueError(f"stages are {', '.join(names)}; each once, in the order {order}")
        return self

    @model_validator(mode="after")
    def _check_base(self) -> "Recipe":
        if self.base is None:
            return self
        given = {
            "memory": "memory" in self.model_fields_set,
            "max_length": "max_length" in self.model_fields_set,
            "backbone.name": "name" in self.backbone.model_fields_set,
            "backbone.add_bos": self.backbone.add_bos is not None,
        }
        if fixed := [key for key, is_given in given.items() if is_given]:
            raise ValueError(f"{fixed[0]} is that of the base {self.base}; leave it out")
        if self.stages[0].stage == "pretext":
            raise ValueError(
                f"pretext needs a causal language model, and the base {self.base} is an encoder; "
                "leave one of them out (pretext.start_from goes on from a trained stage 1)"
            )
        if self.evaluation.baselines:
            raise ValueError("evaluation.baselines are made of a backbone; leave them out")
        return self

    @model_validator(mode="after")
    def _check_vectors(self) -> "Recipe":
        asked = {"evaluation.vectors": self.evaluation.vectors}
        for one in self.stages:
            if one.stage == "supervised":
                asked["supervised.vectors"] = one.vectors
        for key, vectors in asked.items():
            if vectors == "k" and self.base is None and self.memory.tokens == 1:
                raise ValueError(f"{key}: k needs several memory tokens, and memory.tokens is 1")
        return self

    @model_validator(mode="after")
    def _check_backbone(self) -> "Recipe":
        attends, in_4bit = self.backbone.attn_implementation, self.backbone.load_in_4bit
        for stage in self.stages:
            if stage.lora is None and in_4bit:
                raise ValueError(
                    f"backbone.load_in_4bit: weights in 4 bits cannot train, and {stage.stage} has "
                    "lora: null; give it a lora, or leave load_in_4bit out"
                )
            if stage.lora is None and attends == "flash_attention_2":
                raise ValueError(
                    f"backbone.attn_implementation: flash_attention_2 has no float32, in which "
                    f"{stage.stage} trains all weights (lora: null); take sdpa"
                )
            dropout = stage.attention_dropout if isinstance(stage, Unsupervised) else 0
            if attends == "flex_attention" and dropout:
                raise ValueError(
                    "backbone.attn_implementation: flex_attention has no dropout; set "
                    f"{stage.stage}.attention_dropout=0, or take sdpa"
                )
        return self

    @model_serializer(mode="wrap")
    def _leave_out_what_the_base_fixes(self, write: SerializerFunctionWrapHandler) -> Any:
        settings = write(self)
        if self.base is not None:
            for key in {"memory", "max_length", "prompts"} - {*self.model_fields_set}:
                settings.pop(key, None)
            settings.get("backbone", {}).pop("name", None)
        return settings


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe, apply overrides, and check the result.

    Args:
        path: the YAML file.
        overrides: `key=value` with dotted keys, as `llm2comp.utils.yaml_files.apply_overrides`
            takes them. A stage is addressed by its name: `pretext.steps=100`.

    Raises:
        UserError: if the file is missing or is not YAML, an override cannot be applied, or a key
            or value is wrong. The message names the file, the key and the nearest known key.
    """
    return parse_recipe(read_yaml(path, "recipe"), overrides or [], f"recipe {path}")


def parse_recipe(content: dict[str, Any], overrides: list[str], origin: str) -> Recipe:
    """Check a recipe that was read from YAML, after applying overrides to it.

    Args:
        content: the keys of the recipe.
        overrides: as `load_recipe` takes them.
        origin: where the recipe is from; the error message begins with it.

    Raises:
        UserError: if an override cannot be applied, or a key or value is wrong.
    """
    try:
        return Recipe.model_validate(apply_overrides(content, overrides))
    except ValidationError as error:
        raise UserError(f"{origin}: {explain_validation_error(error)}") from error


def recipe_path(name: str) -> Path:
    """Return the file of a recipe, given its path or the name of a shipped recipe (`demo`).

    Raises:
        UserError: if there is no such file and no such shipped recipe.
    """
    return find_shipped(name, "recipe", "*.yaml")


def study_path(name: str) -> Path:
    """Return the file of a study, given its path or the name of a shipped study (`pretext`).

    Raises:
        UserError: if there is no such file and no such shipped study.
    """
    return find_shipped(name, "study", "study/*.yaml")
