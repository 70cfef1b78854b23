"""Dropout of a backbone: none, but for the attention's in UCL.

The frozen model is a teacher, so it must compute the same in training as in evaluation. Some
architectures have dropout or other noise in their configuration (GPT-2, OPT), and the Trainer
switches it on with `model.train()`.
"""

from typing import Any

from transformers import PreTrainedConfig

_NOISE = ("drop", "jitter")
"""Parts of the names that configurations give to probabilities of dropout and to router noise."""
_ATTENTION = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")
"""The names that architectures give to the dropout of attention weights."""


def remove_dropout(config: PreTrainedConfig) -> None:
    """Set every dropout and noise in a configuration to 0, in place, before the model is built."""
    for name in noise_settings(config):
        setattr(config, name, 0.0)
    for part in vars(config).values():
        if isinstance(part, PreTrainedConfig):
            remove_dropout(part)


def noise_settings(config: PreTrainedConfig) -> list[str]:
    """Return the names of a configuration's settings that are a probability or size of noise."""
    return [
        name
        for name, value in vars(config).items()
        if any(part in name for part in _NOISE)
        and isinstance(value, int | float)
        and not isinstance(value, bool)
    ]


def dropout_settings(config: PreTrainedConfig, attention: float) -> dict[str, Any]:
    """Return the settings with which a body has dropout of attention weights and no other.

    Args:
        config: of the body.
        attention: probability of dropout.

    Returns:
        Values by name. An architecture whose configuration has no dropout of attention gets none.
    """
    known = [name for name in _ATTENTION if hasattr(config, name)]
    return dict.fromkeys(noise_settings(config), 0.0) | dict.fromkeys(known, attention)
