"""Read a causal language model from files: whole and as it was trained, or not at all."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from llm2comp.errors import UserError, one_line
from llm2comp.model.loading.tokenizer import load_tokenizer
from llm2comp.utils.finite import require_finite

TEXT_PART = {
    r"^language_model\.model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
    r"^model\.language_model\.": "model.",
}
"""Names of a language model's weights, by the pattern of their names in a multimodal model."""
CONSTANTS = ("inv_freq", "masked_bias", "attn.bias", "attn.attention.bias", "attn.causal_mask")
"""Ends of the names of constants, which old checkpoints hold among the weights."""


@contextmanager
def silent() -> Iterator[None]:
    """Silence the log of transformers in a block, which repeats in a table what is in the error."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


@contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """Turn any error that transformers raises in a block into one line.

    transformers and the libraries below it raise whatever comes up: `KeyError`, `RuntimeError`,
    `SafetensorError`, `ImportError`. The block holds calls of transformers only, so that an error
    of this package is not taken for one of the user's files.

    Args:
        name: of the backbone, as the user gave it.

    Raises:
        UserError: for any error in the block.
    """
    try:
        with silent():
            yield
    except Exception as error:
        reason = one_line(error) or type(error).__name__
        if "trust_remote_code" in str(error):
            reason = (
                "it comes with Python code of its own; read the code, and if you trust it, set "
                "backbone.trust_remote_code=true, or LLM2COMP_TRUST_REMOTE_CODE=1 without a recipe"
            )
        raise UserError(f"backbone {name!r} cannot be loaded: {reason}") from error


def read_config(folder: Path, name: str, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Return the configuration of the language model in a folder, without its weights.

    Args:
        folder: transformers folder.
        name: of the backbone, for the message.
        trust_remote_code: whether to run code that comes with the model.

    Returns:
        The configuration; for a multimodal model that of its language model.

    Raises:
        UserError: if there is none, or the model is an encoder-decoder or quantised.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"backbone {name!r} is not a transformers model: it has no config.json")
    with one_line_errors(name):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    if config.is_encoder_decoder:
        raise UserError(
            f"backbone {name!r} is an encoder-decoder ({config.model_type}); give a causal "
            "language model, which has a decoder only"
        )
    quantised = getattr(config, "quantization_config", None)
    if quantised:
        method = dict(quantised).get("quant_method", "unknown")
        raise UserError(
            f"backbone {name!r} is quantised ({method}), and a LoRA cannot be merged into "
            "quantised weights; give the original model in bfloat16 or float32"
        )
    text: PreTrainedConfig = config.get_text_config()
    if getattr(config, "tie_word_embeddings", False):
        text.tie_word_embeddings = True  # a multimodal model says it for its language model
    return text


def read_model(
    folder: Path, name: str, config: PreTrainedConfig | None = None, **options: Any
) -> PreTrainedModel:
    """Return the causal language model in a folder, and check that it is whole.

    transformers draws weights that are missing at random and leaves out what it does not know,
    both with a warning only.

    Args:
        folder: transformers folder.
        name: of the backbone, for the message.
        config: as `read_config` returns it; by default transformers reads it.
        options: further arguments of `from_pretrained`.

    Raises:
        UserError: if the weights cannot be read, or do not fit the configuration.
    """
    with one_line_errors(name):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            key_mapping=TEXT_PART,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
            **options,
        )
    model: PreTrainedModel = loaded[0]
    report = loaded[1]
    misfits = {
        "lacks": set(report["missing_keys"]),
        "has another shape than its config.json says of": {
            key for key, *_ in report["mismatched_keys"]
        },
        "has more than its config.json says:": _of_blocks(model, report["unexpected_keys"]),
    }
    for what, keys in misfits.items():
        if keys:
            raise UserError(
                f"backbone {name!r} {what} weights, such as {min(keys)} ({len(keys)} in all); "
                "download it again, and check that config.json belongs to the weights"
            )
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if head is not None and head.weight is not model.get_input_embeddings().weight:
        # Some configurations say otherwise by default, and resizing the table would tie them.
        model.config.tie_word_embeddings = False
    require_finite(model, f"backbone {name!r}", "download it again, or take another checkpoint")
    return model


def _of_blocks(model: PreTrainedModel, names: Iterable[str]) -> set[str]:
    """Return the names that belong to the model's blocks.

    Other weights may be left out: they belong to the eyes of a multimodal model, or to a head that
    predicts several tokens.
    """
    blocks = tuple(f"{n}." for n, m in model.named_modules() if isinstance(m, nn.ModuleList))
    return {name for name in names if name.startswith(blocks) and not name.endswith(CONSTANTS)}


def read_tokenizer(folder: Path, name: str, **options: Any) -> PreTrainedTokenizerBase:
    """Return the tokenizer in a folder.

    Args:
        folder: transformers folder.
        name: of the backbone, for the message.
        options: further arguments of `from_pretrained`.

    Raises:
        UserError: if there is none, or it cannot be read.
    """
    with one_line_errors(name):
        return load_tokenizer(folder, **options)
