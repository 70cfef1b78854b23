"""Check an adapter before it trains: without it the model is the original, with it UCL has views.

LoRA starts with `B = 0`, so a new adapter changes nothing and no check could fail. The checks run
with random numbers in `B`, and put the zeros back.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from transformers import PreTrainedModel

from llm2comp.errors import UserError
from llm2comp.model.causal_lm.parts import token_table
from llm2comp.model.causal_lm.probe import is_half, relative_difference, tolerance_of
from llm2comp.model.compressor import Compressor
from llm2comp.model.encoder import encoder_body
from llm2comp.model.lora import trainable_parameters

TOKENS = 14
"""Tokens of the text that the original model reads."""
SAME_VIEW = 1e-6
"""Relative difference up to which two views of a text are the same."""


@dataclass(frozen=True)
class Original:
    """What a language model computed before it got memory tokens and an adapter.

    Attributes:
        ids: a text, `(1, length)`.
        logits: `(length, tokens)`.
    """

    ids: Tensor
    logits: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, model: PreTrainedModel) -> "Original":
        """Let a model read a text by its own `forward`, in evaluation mode."""
        size = token_table(model).num_embeddings
        ids = torch.randint(size, (1, TOKENS), generator=torch.Generator().manual_seed(1))
        ids = ids.to(model.device)
        return cls(ids, model(ids).logits[0])


@torch.no_grad()
def check_frozen(compressor: Compressor, original: Original) -> None:
    """Check that the model with its adapter off is the original model, in training mode too.

    Args:
        compressor: with its adapter.
        original: of the same backbone.

    Raises:
        UserError: if the logits are not the original's, or the adapter changes nothing.
    """
    targets = torch.ones_like(original.ids, dtype=torch.bool)
    training, half = compressor.training, is_half(compressor.body)
    with _random_adapter(compressor), _autocast(compressor.body):
        compressor.train()
        states = compressor.teacher_states(original.ids, targets)
        compressor.train(False)
        adapted = compressor.encode(original.ids, torch.ones_like(original.ids))[0]
        logits = compressor.logits(states)
    compressor.train(training)
    expected = original.logits[:, : compressor.vocabulary]
    difference = relative_difference(logits, expected, half=half)
    if not difference <= tolerance_of(compressor.body):
        raise UserError(
            "the backbone is refused: with the adapter off its logits are not the original's (by "
            f"{difference:.1e} of their norm); choose another backbone"
        )
    if not relative_difference(adapted, states, half=half) > SAME_VIEW:
        raise UserError(
            "the adapter changes nothing; choose other lora.target_modules or another backbone"
        )


@torch.no_grad()
def check_two_views(model: SentenceTransformer, text: str) -> None:
    """Check that two readings of a text in training differ, as UCL needs.

    Args:
        model: the encoder with its adapter.
        text: any text.

    Raises:
        UserError: if the two embeddings are the same.
    """
    training = model.training
    with _random_adapter(model), _autocast(encoder_body(model)):
        model.train()
        features = {
            name: value.to(model.device) if isinstance(value, Tensor) else value
            for name, value in model.preprocess([text, text]).items()
        }
        first, second = model(features)["sentence_embedding"].float()
    model.train(training)
    if not relative_difference(first[None], second[None], half=False) > SAME_VIEW:
        raise UserError(
            "unsupervised: two readings of a text in training are the same, so there is nothing "
            "to learn; set unsupervised.lora.dropout above 0 (this backbone has no dropout of "
            "attention, or unsupervised.attention_dropout is 0)"
        )


def _autocast(body: PreTrainedModel) -> torch.autocast:
    """Return the context in which training runs a body, whose adapter is float32."""
    return torch.autocast(body.device.type, body.dtype, enabled=is_half(body))


@contextmanager
def _random_adapter(model: nn.Module) -> Iterator[None]:
    """Fill LoRA's `B` with random numbers in a block, and leave the random state as it was."""
    generator = torch.Generator().manual_seed(2)
    factors = [p for name, p in trainable_parameters(model).items() if "lora_B" in name]
    before = [factor.clone() for factor in factors]
    with torch.random.fork_rng():
        for factor in factors:
            factor.copy_(0.02 * torch.randn(factor.shape, generator=generator))
        try:
            yield
        finally:
            for factor, values in zip(factors, before, strict=True):
                factor.copy_(values)
