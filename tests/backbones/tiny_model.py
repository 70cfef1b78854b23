"""Write a tiny language model of an architecture, with random weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

ATTENTIONS = ("causal", "bidirectional")
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "attention_dropout": 0.1,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        model_type: transformers' name of the architecture.
        options: of the configuration, beyond the sizes that most architectures share.
        sizes: the shared sizes.
        variant: tells families of one architecture apart.
        spare_rows: rows of the token table beyond the tokenizer's tokens.
        core: whether the quick tests have the family. Together these have every mechanism.
        refused: words of the message that refuses the family, in order; empty if it works.
        refused_bidirectional: the same with bidirectional attention.
        attention_dropout: whether the architecture has dropout of attention weights.
        remark: for the page.
    """

    model_type: str
    options: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, Any] = field(default_factory=lambda: SIZES)
    variant: str = ""
    spare_rows: int = 0
    core: bool = False
    refused: str = ""
    refused_bidirectional: str = ""
    attention_dropout: bool = True
    remark: str = ""

    def refusal(self, attention: str) -> str:
        """Return words of the message that refuses the family; empty if it works."""
        own = self.refused_bidirectional if attention == "bidirectional" else ""
        return own or self.refused

    @property
    def is_known(self) -> bool:
        """Whether the installed transformers has the architecture."""
        return self.model_type in CONFIG_MAPPING

    @property
    def name(self) -> str:
        """The architecture and the variant, for folders and tests."""
        return "-".join(filter(None, [self.model_type, self.variant]))

    def write(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
        """Write a model with random weights and its tokenizer, and return the folder."""
        config = self._config(tokenizer)
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        # transformers gives some architectures, as Qwen2, a tokenizer class of their own.
        AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim == 1:  # biases and norms, which begin as zeros and ones
                        parameter += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(folder)
        return folder

    def _config(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
        rows = len(tokenizer) + self.spare_rows
        shared = {
            **self.sizes,
            "vocab_size": rows,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        settings = {**shared, **self.options}
        if "text_config" in settings:  # of a multimodal model
            settings = {**self.options, "text_config": {**shared, **self.options["text_config"]}}
        if "vocab_size_per_layer_input" in settings:
            settings["vocab_size_per_layer_input"] = rows
        return CONFIG_MAPPING[self.model_type](**settings)
