"""A model of few layers with random weights, on which a whole one is tried or measured."""

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from llm2comp.model.causal_lm.parts import body_of
from llm2comp.model.loading.checkpoint import silent


def random_model(
    config: PreTrainedConfig,
    *,
    head: bool,
    device: str,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Return a model with random weights, in evaluation mode.

    Args:
        config: of the model; it is copied.
        head: whether it has a language-modelling head.
        device: where its weights are; on `meta` they take no memory.
        dtype: of its weights.
        trust_remote_code: whether to run code that comes with the model.
    """
    kind: Any = AutoModelForCausalLM if head else AutoModel
    with silent(), torch.device(device):
        model: PreTrainedModel = kind.from_config(
            copy.deepcopy(config), dtype=dtype, trust_remote_code=trust_remote_code
        )
    model.train(False)
    return model


def layers_of_each_kind(config: PreTrainedConfig, model: PreTrainedModel) -> int:
    """Return the number of first layers among which each kind of layer is.

    Args:
        config: of the model.
        model: the whole model; its weights are not read, so it may be on the device `meta`.
    """
    count: int = config.num_hidden_layers
    body = body_of(model)
    blocks = next(
        (m for m in body.modules() if isinstance(m, nn.ModuleList) and len(m) == count), ()
    )
    types = getattr(config, "layer_types", None) or [None] * count
    kinds = [
        (kind, *(f"{name} {type(m).__name__}" for name, m in block.named_modules()))
        for kind, block in zip(types, blocks, strict=bool(blocks))
    ]
    return max((kinds.index(kind) + 1 for kind in set(kinds)), default=count)


def with_layers(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """Return a copy of a configuration with the first layers only."""
    count: int = config.num_hidden_layers
    small = copy.deepcopy(config)
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == count:  # says something of each layer
            setattr(small, name, value[:layers])
    small.num_hidden_layers = layers
    return small
