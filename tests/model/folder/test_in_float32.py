"""A model in half precision computes as one in float32, with one wide weight at a time."""

import copy

import pytest
import torch
from transformers import (
    Gemma3TextConfig,
    Gemma3TextModel,
    GPT2Config,
    GPT2Model,
    Lfm2Config,
    Lfm2Model,
    LlamaConfig,
    LlamaModel,
    MixtralConfig,
    MixtralModel,
    PreTrainedModel,
)

from llm2comp.model.folder.in_float32 import InFloat32

SMALL = dict(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2)
MODELS = {
    "llama": lambda: LlamaModel(LlamaConfig(**SMALL, num_attention_heads=4)),
    "gpt2": lambda: GPT2Model(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4)),
    "mixtral": lambda: MixtralModel(
        MixtralConfig(**SMALL, num_attention_heads=4, num_key_value_heads=2, num_local_experts=4)
    ),
    "lfm2": lambda: Lfm2Model(
        Lfm2Config(
            **SMALL,
            num_attention_heads=4,
            num_key_value_heads=2,
            layer_types=["conv", "full_attention"],
        )
    ),
    "gemma": lambda: Gemma3TextModel(
        Gemma3TextConfig(**SMALL, num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    ),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_states_are_those_of_the_model_in_float32(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    exact: PreTrainedModel = MODELS[name]().eval()
    for parameter in exact.parameters():
        parameter.data = (parameter.data + 0.1 * torch.randn_like(parameter)).to(dtype).float()
    half = copy.deepcopy(exact)
    for parameter in half.parameters():
        parameter.data = parameter.data.to(dtype)
    ids, mask = torch.randint(0, 50, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[0, 6:] = 0
    with torch.inference_mode():
        expected = exact(ids, attention_mask=mask).last_hidden_state
        with InFloat32():
            found = half(ids, attention_mask=mask).last_hidden_state
        rounded = half(ids, attention_mask=mask).last_hidden_state
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 1e-5 * expected.norm()
    assert (rounded.float() - expected).norm() > 1e-4 * expected.norm()
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
