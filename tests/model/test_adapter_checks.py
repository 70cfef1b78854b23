"""A model whose adapter does not switch off is refused, and UCL with two equal views too."""

from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm2comp import recipe
from llm2comp.errors import UserError
from llm2comp.model.adapter_checks import Original, check_frozen, check_two_views
from llm2comp.model.compressor import Compressor
from llm2comp.model.encoder import assemble, encoder_body
from llm2comp.model.lora import add_adapter, trainable_parameters
from llm2comp.model.memory_tokens import add_memory_tokens


def compressor(backbone: Path) -> tuple[Compressor, Original]:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(backbone)
    original = Original.of(model)
    lora = recipe.Lora(r=4, dropout=0.1)
    return Compressor(model, 0, lora, bos_id=1, causal=True), original


def test_a_check_passes_and_changes_nothing(tiny_backbone: Path) -> None:
    model, original = compressor(tiny_backbone)
    before = {name: p.clone() for name, p in trainable_parameters(model).items()}
    random = torch.get_rng_state()
    check_frozen(model, original)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(p, before[n]) for n, p in trainable_parameters(model).items())


def test_an_adapter_that_stays_on_is_refused(
    tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, original = compressor(tiny_backbone)
    monkeypatch.setattr(model, "_adapter_layers", [])
    with pytest.raises(UserError, match="with the adapter off its logits are not the original's"):
        check_frozen(model, original)


def test_an_adapter_that_stays_off_is_refused(tiny_backbone: Path) -> None:
    model, original = compressor(tiny_backbone)
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.scaling = dict.fromkeys(layer.scaling, 0.0)
    with pytest.raises(UserError, match="the adapter changes nothing"):
        check_frozen(model, original)


@pytest.mark.parametrize(("attention", "lora"), [(0.0, 0.1), (0.2, 0.0), (0.0, 0.0)])
def test_ucl_needs_two_views_that_differ(
    tiny_backbone: Path, attention: float, lora: float
) -> None:
    backbone = AutoModelForCausalLM.from_pretrained(tiny_backbone)
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)
    tokenizer = add_memory_tokens(backbone, tokenizer, recipe.Memory(tokens=4), seed=0)
    model = assemble(backbone, tokenizer, 4, causal=True)
    for layer in encoder_body(model).layers:
        layer.self_attn.attention_dropout = attention
    add_adapter(encoder_body(model), recipe.Lora(r=4, dropout=lora), 4)
    if attention or lora:
        check_two_views(model, "The river rises in the mountains.")
    else:
        with pytest.raises(UserError, match=r"set unsupervised\.lora\.dropout above 0"):
            check_two_views(model, "The river rises in the mountains.")
