"""Weights in 4 bits: what they take, what is left as it was, and gradients that pass through."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from llm2comp.errors import UserError
from llm2comp.model.backbone import load_backbone, require_trainable
from llm2comp.model.causal_lm.parts import body_of, token_table
from llm2comp.model.loading import four_bit
from llm2comp.recipe_parts import Backbone

needs_bitsandbytes = pytest.mark.skipif(
    not find_spec("bitsandbytes"), reason="needs bitsandbytes: pip install 'llm2comp[qlora]'"
)


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers in 4 bits."""
    found = {name: layer for name, layer in model.named_modules() if hasattr(layer, "quant_state")}
    assert found
    return found


def _dequantised(folder: Path, quantised: PreTrainedModel) -> PreTrainedModel:
    """Return an ordinary model with the numbers that the 4 bits stand for."""
    from bitsandbytes.functional import dequantize_4bit

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=quantised.dtype)
    for name, layer in _layers(quantised).items():
        numbers = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        model.get_submodule(name).weight.data = numbers.to(quantised.dtype)
    return model


@needs_bitsandbytes
def test_gradients_pass_through_layers_in_4_bits_after_an_evaluation(tiny_backbone: Path) -> None:
    """With native bfloat16, an evaluation packs weights, and they have no gradient then."""
    model, _ = load_backbone(str(tiny_backbone), load_in_4bit=True)  # the probe evaluates it
    inputs = token_table(model)(torch.arange(20, 40)[None]).detach()
    found: list[tuple[Tensor, Tensor]] = []
    for each in (model, _dequantised(tiny_backbone, model)):
        own = inputs.clone().requires_grad_()
        states = body_of(each).train()(inputs_embeds=own).last_hidden_state
        states.pow(3).sum().backward()
        found.append((states.detach(), own.grad))
    for ours, reference in zip(*found, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-3, rtol=1e-4)


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_linear_layers_take_what_is_counted_and_all_else_is_as_before(
    tiny_backbone: Path, dtype: torch.dtype
) -> None:
    whole, _ = load_backbone(str(tiny_backbone), dtype=dtype)
    small, _ = load_backbone(str(tiny_backbone), dtype=dtype, load_in_4bit=True)
    layers = _layers(small)
    assert {name for name, layer in whole.named_modules() if type(layer) is nn.Linear} == {
        *layers,
        "lm_head",
    }
    taken = sum(p.numel() * p.itemsize for p in small.parameters())
    for layer in layers.values():
        state = layer.weight.quant_state
        assert (state.quant_type, state.nested) == ("nf4", True)
        taken += state.absmax.numel() + 4 * state.state2.absmax.numel()
    assert taken == pytest.approx(four_bit.bytes_of(whole, dtype, load_in_4bit=True), rel=0.01)
    unchanged = {n: p for n, p in small.named_parameters() if n.rpartition(".")[0] not in layers}
    assert {p.dtype for p in unchanged.values()} == {dtype}
    for name, parameter in unchanged.items():
        assert torch.equal(parameter, whole.get_parameter(name)), name


def test_bytes_of_a_model_without_4_bits_are_those_of_its_weights(tiny_backbone: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_backbone)
    expected = sum(parameter.nbytes for parameter in model.parameters())
    assert four_bit.bytes_of(model, torch.float32, load_in_4bit=False) == expected


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(four_bit, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"needs bitsandbytes: pip install 'llm2comp\[qlora\]'"):
        require_trainable(Backbone(load_in_4bit=True))
