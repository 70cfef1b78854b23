"""The parts of a causal language model: its body, its token table, and its way to the logits."""

import copy
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel


def body_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model without its language-modelling head; a body itself is returned as it is."""
    body = model.base_model
    if body is model and isinstance(getattr(model, "model", None), PreTrainedModel):
        body = model.model  # Llama 4 names its body otherwise than its class says
    return cast(PreTrainedModel, body)


def token_table(model: PreTrainedModel) -> nn.Embedding:
    """Return the embedding layer, whose weight is the token table `(tokens, hidden)`."""
    return cast(nn.Embedding, model.get_input_embeddings())


def positions_of(config: PreTrainedConfig) -> int | None:
    """Return the longest text, in tokens, whose states do not depend on the rest of its batch.

    It is the number of positions of the model. Where longer texts have other rotary embeddings
    (`longrope`, `dynamic`), the longest text of a batch decides for all of it, so that the number
    is that of the shorter kind.

    Args:
        config: of a model or its body.

    Returns:
        The number of tokens, special ones included; None if there is no limit.
    """
    limits = [getattr(config, "max_position_embeddings", None)]
    rope = getattr(config, "rope_parameters", None) or {}
    for part in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if part.get("rope_type") in ("longrope", "dynamic"):
            own = getattr(config, "original_max_position_embeddings", None)
            limits.append(part.get("original_max_position_embeddings", own))
    return min((limit for limit in limits if limit), default=None)


class Head(nn.Module):
    """A language model's own way from the states of its last layer to its logits.

    Between the two are the output embeddings and whatever else the architecture does: it scales
    the logits (Cohere, Granite), caps them (Gemma 2) or adds a bias (Phi). To skip any of this
    would give wrong losses. So the model's own `forward` runs, on a copy whose body returns the
    states that it is given. The copy shares all weights.

    Args:
        model: causal language model. It is not changed.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = copy.copy(model)
        body = body_of(model)
        self.model._modules = {
            name: _GivenStates() if child is body else child
            for name, child in model._modules.items()
        }

    def forward(self, states: Tensor) -> Tensor:
        """Return the logits `(n, tokens)` of states `(n, hidden)`."""
        logits: Tensor = self.model(inputs_embeds=states[None], use_cache=False).logits
        return logits[0]


class _GivenStates(nn.Module):
    """Stands in for a model's body, and returns its input as the states of the last layer."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> "_Output":
        return _Output(inputs_embeds)

    @property
    def decoder(self) -> "_GivenStates":
        """The part of the body that OPT's language model calls."""
        return self


class _Output:
    """A body's output. It has the states of the last layer, and None for everything else."""

    def __init__(self, states: Tensor) -> None:
        self.last_hidden_state = states

    def __getattr__(self, name: str) -> None:
        return None

    def __getitem__(self, index: int) -> Tensor:
        return (self.last_hidden_state,)[index]
