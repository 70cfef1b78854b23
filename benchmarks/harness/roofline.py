"""The matrix products of an encoder's body and nothing else: what no implementation can beat."""

import math
from collections.abc import Callable

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from llm2comp.data.length_batching import batch_by_tokens
from llm2comp.inference.token_batching import TOKENS_PER_TEXT
from llm2comp.model import encoder
from llm2comp.model.attention import BLOCK

BUDGET = 32 * TOKENS_PER_TEXT


def linear_layers(model: SentenceTransformer, dtype: torch.dtype) -> Callable[[np.ndarray], None]:
    """Return what runs the linear layers on random numbers, for texts of given token counts.

    It computes as many rows for each batch as llm2comp does, padding included.
    """
    body = encoder.encoder_body(model)
    layers = [module for module in body.modules() if isinstance(module, torch.nn.Linear)]
    widths = {layer.in_features for layer in layers}
    inputs = {width: torch.randn(BUDGET, width, dtype=dtype) for width in widths}

    @torch.inference_mode()
    def run(tokens: np.ndarray) -> None:
        for rows in batch_by_tokens(tokens, BUDGET):
            computed = len(rows) * tokens[rows[0]]
            for layer in layers:
                layer(inputs[layer.in_features][:computed])

    return run


def attention(model: SentenceTransformer, dtype: torch.dtype) -> Callable[[np.ndarray], None]:
    """Return what runs attention's products, of a block of queries with the keys up to its end."""
    config = encoder.encoder_body(model).config
    keys, width = config.num_key_value_heads, config.head_dim
    group = config.num_attention_heads // keys
    longest = model.max_seq_length
    numbers = torch.randn(max(BUDGET, longest) * keys * group * max(width, longest), dtype=dtype)

    def some(*shape: int) -> torch.Tensor:
        return numbers[: math.prod(shape)].view(shape)

    @torch.inference_mode()
    def run(tokens: np.ndarray) -> None:
        for rows in batch_by_tokens(tokens, BUDGET):
            length, heads = int(tokens[rows[0]]), len(rows) * keys
            for _ in range(config.num_hidden_layers):
                for start in range(0, length, BLOCK):
                    end = min(start + BLOCK, length)
                    queries = some(heads, group * (end - start), width)
                    torch.bmm(queries, some(heads, length, width)[:, :end].transpose(1, 2))
                    weights = some(heads, group * (end - start), end)
                    torch.bmm(weights, some(heads, length, width)[:, :end])

    return run
