"""What the checks work on: how large everything is, the folder of texts, backbones and recipes."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

from gpucheck import texts
from llm2comp.errors import UserError
from llm2comp.model.backbone import backbone_folder
from llm2comp.model.causal_lm.few_layers import random_model
from llm2comp.recipe import Recipe, parse_recipe

SMALL_BACKBONE = "smollm2-135m"
SEED = 0
TOKENS = 400
"""Of the tokenizer of random backbones."""


@dataclass(frozen=True)
class Sizes:
    """How large the checks are.

    Attributes:
        backbone: name of the small backbone; None for a random one of the shape `small`.
        small: shape of a random small backbone, as `LlamaConfig` takes it.
        large: shape of the large backbone.
        steps: of each stage of the small backbone.
        batch: rows of its batches.
        tokens: of its texts.
        learning_rate: of all of its stages.
        large_steps: of each stage of the large backbone.
        large_rows: rows of a batch of stages 2 and 3 of the large backbone. What they take follows
            from the tokens that are in memory at once, and a batch of the paper would take minutes.
        large_tokens: of a text in each stage of the large backbone; None as the recipe has it.
        memory_apart: largest relative difference of the memory that the large backbone takes from
            the memory that is planned for it.
        encoded: number of short and of long texts that are encoded.
        rounds: in which their encoding is timed.
        compiles: whether `torch.compile` is tried, which takes a minute.
    """

    backbone: str | None
    small: dict[str, Any]
    large: dict[str, Any]
    steps: int = 12
    batch: int = 16
    tokens: int = 64
    learning_rate: float = 1e-3
    large_steps: int = 3
    large_rows: tuple[int, int] = (32, 16)
    large_tokens: int | None = None
    memory_apart: float = 0.25
    encoded: tuple[int, int] = (2048, 256)
    rounds: int = 3
    compiles: bool = True


REAL = Sizes(
    backbone=SMALL_BACKBONE,
    small={
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    large={
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
)
"""SmolLM2-135M, or its shape, and the shape of Llama-2-7b."""
TINY = Sizes(
    backbone=None,
    small={
        "vocab_size": TOKENS,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    large={
        "vocab_size": TOKENS,
        "hidden_size": 64,
        "intermediate_size": 176,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    },
    batch=8,
    learning_rate=5e-3,
    large_rows=(4, 4),
    large_tokens=96,
    memory_apart=0.75,  # the plan counts fused attention, and a processor has none for short texts
    encoded=(32, 8),
    rounds=1,
    compiles=False,
)
"""What a processor can do in seconds."""


@dataclass(frozen=True)
class Workshop:
    """The folder that the parts share.

    Attributes:
        folder: that is removed in the end.
        sizes: how large the checks are.
    """

    folder: Path
    sizes: Sizes

    def prepare(self) -> str:
        """Write texts and backbones.

        Returns:
            What the small backbone is.
        """
        sizes = self.sizes
        texts.write_passages(self.folder / "passages.txt", 400, 60, SEED)
        texts.write_pairs(self.folder / "pairs.jsonl", 300, 40, SEED, scored=False)
        texts.write_pairs(self.folder / "scored.jsonl", 300, 40, SEED, scored=True)
        texts.write_passages(self.folder / "long.txt", 200, 600, SEED)
        texts.write_pairs(self.folder / "long-pairs.jsonl", 100, 1100, SEED, scored=False)
        _write_backbone(self.folder / "large", sizes.large, weights=False)
        name, said = self._small_backbone()
        (self.folder / "small.json").write_text(json.dumps(name), encoding="utf-8")
        return said

    def _small_backbone(self) -> tuple[str, str]:
        """Return the name of the small backbone, and what it is in words."""
        reason = "a stand-in"
        if self.sizes.backbone is not None:
            try:
                backbone_folder(self.sizes.backbone)
            except UserError as error:
                reason = str(error)
            else:
                return self.sizes.backbone, self.sizes.backbone
        folder = self.folder / "small"
        _write_backbone(folder, self.sizes.small, weights=True)
        return str(folder), f"random weights ({reason})"

    @property
    def backbone(self) -> str:
        """The name of the small backbone."""
        return str(json.loads((self.folder / "small.json").read_text(encoding="utf-8")))

    @property
    def learns(self) -> bool:
        """Whether the small backbone is one whose losses fall in a few steps."""
        return self.sizes.backbone in (None, self.backbone)

    def recipe(self, *overrides: str) -> Recipe:
        """Return a recipe of three stages for the small backbone.

        It has no dropout, so that two devices and two precisions train the same.

        Args:
            overrides: as `llm2comp train` takes them.
        """
        sizes = self.sizes
        common = {
            "lora": {"r": 8, "alpha": 16, "dropout": 0.0},
            "steps": sizes.steps,
            "batch_size": sizes.batch,
            "learning_rate": sizes.learning_rate,
            "warmup_steps": 2,
            "save_steps": 4,
            "log_steps": 1,
            "eval_steps": 1000,
        }
        contrastive = common | {"max_length": sizes.tokens, "eval_pairs": 4}
        content = {
            "name": "gpu-check",
            "seed": SEED,
            "backbone": {"name": self.backbone, "add_bos": True},
            "memory": {"tokens": 8, "scale": "embeddings"},
            "max_length": sizes.tokens,
            "evaluation": {"tasks": []},
            "stages": [
                common
                | {
                    "stage": "pretext",
                    "objective": "distillation",
                    "data": [{"source": str(self.folder / "passages.txt")}],
                    "passages": {"min_chars": 100, "max_tokens": sizes.tokens, "crop": True},
                    "split": {"low": sizes.tokens // 2, "margin": sizes.tokens // 8},
                    "eval_passages": 4,
                },
                contrastive
                | {
                    "stage": "unsupervised",
                    "data": [{"source": str(self.folder / "passages.txt")}],
                    "attention": "bidirectional",
                    "views": "crop",
                    "attention_dropout": 0.0,
                },
                contrastive
                | {
                    "stage": "supervised",
                    "data": [{"source": str(self.folder / "pairs.jsonl")}],
                    "mini_batch_size": max(1, sizes.batch // 2),  # so GradCache is tried
                },
            ],
        }
        return parse_recipe(content, list(overrides), "gpu check")

    def supervised_from(self, base: Path, rows: str, *overrides: str) -> Recipe:
        """Return a recipe of stage 3 alone, from an encoder folder.

        Args:
            base: the encoder folder.
            rows: name of the file of pairs.
            overrides: as `llm2comp train` takes them.
        """
        content = self.recipe().model_dump(exclude_unset=True)
        content["stages"] = [content["stages"][2] | {"data": [{"source": str(self.folder / rows)}]}]
        del content["memory"], content["max_length"]
        content |= {"base": str(base), "backbone": {}}
        return parse_recipe(content, list(overrides), "gpu check")


def _write_backbone(folder: Path, shape: dict[str, Any], *, weights: bool) -> None:
    """Write the folder of a random Llama; without weights it can be planned and made, not loaded.

    Args:
        folder: to write.
        shape: as `LlamaConfig` takes it.
        weights: whether weights are written.
    """
    tokenizer = texts.small_tokenizer(TOKENS)
    config = LlamaConfig(
        **shape,
        max_position_embeddings=4096,
        # Weights of this size leave states as large as they were; smaller ones hardly attend.
        initializer_range=shape["hidden_size"] ** -0.5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    tokenizer.save_pretrained(folder)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    if weights:
        torch.manual_seed(SEED)
        random_model(config, head=True, device="cpu").save_pretrained(folder)
