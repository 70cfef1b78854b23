"""Adapters: the states, gradients and files of PEFT's layers, without what makes those slow."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from llm2comp import recipe
from llm2comp.model.causal_lm.parts import body_of, token_table
from llm2comp.model.lora import LoraLinear, MemoryEmbedding, add_adapter, trainable_parameters

K = 3


def _layers(table: torch.nn.Embedding) -> tuple[TrainableTokensLayer, MemoryEmbedding]:
    size = table.num_embeddings
    layers = []
    for kind in (TrainableTokensLayer, MemoryEmbedding):
        layer = kind(table, "default", list(range(size - K, size)))
        layer.update_layer("default", token_indices=list(range(size - K, size)))
        with torch.no_grad():
            layer.trainable_tokens_delta["default"].mul_(2).add_(1)
        layer.set_adapter("default")
        layers.append(layer)
    return layers[0], layers[1]


def _read(layer: TrainableTokensLayer, ids: Tensor) -> tuple[Tensor, Tensor]:
    embeddings = layer(ids)
    embeddings.square().sum().backward()
    return embeddings.detach(), layer.trainable_tokens_delta["default"].grad


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled as Gemma's"])
def test_embeddings_and_gradients_are_those_of_peft(*, scaled: bool) -> None:
    torch.manual_seed(0)
    if scaled:
        table = Gemma3TextScaledWordEmbedding(20, 8, padding_idx=0, embed_scale=2.5)
    else:
        table = torch.nn.Embedding(20, 8)
    table.requires_grad_(False)
    ids = torch.tensor([[1, 16, 17, 18, 19], [0, 0, 5, 17, 17]])
    whole, alone = (_read(layer, ids) for layer in _layers(table))
    torch.testing.assert_close(alone[0], whole[0], rtol=0, atol=0)
    torch.testing.assert_close(alone[1], whole[1])


def test_disabled_and_merged_embeddings_are_those_of_peft() -> None:
    table = torch.nn.Embedding(20, 8)
    ids = torch.tensor([[1, 16, 17, 18, 19]])
    original = table(ids).detach()
    _, alone = _layers(table)
    trained = alone(ids).detach()
    alone.enable_adapters(enabled=False)
    torch.testing.assert_close(alone(ids), original, rtol=0, atol=0)
    alone.enable_adapters(enabled=True)
    alone.merge()
    torch.testing.assert_close(alone(ids), trained, rtol=0, atol=0)


def test_no_gradient_of_the_whole_table_is_computed(tiny_backbone: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_backbone).requires_grad_(False)
    table = token_table(model)
    adapted = add_adapter(body_of(model), recipe.Lora(r=4, alpha=8, dropout=0.0), K)
    embeddings = adapted.get_input_embeddings()(torch.tensor([[5, table.num_embeddings - 1]]))
    sizes = []

    def note(node: torch.autograd.graph.Node | None) -> None:
        if node is not None:
            node.register_hook(lambda _, given: sizes.extend(g.numel() for g in given))
            for parent, _ in node.next_functions:
                note(parent)

    note(embeddings.grad_fn)
    embeddings.sum().backward()
    assert sizes
    assert max(sizes) < table.weight.numel()


def _adapted(layer: torch.nn.Linear, kind: type[Linear]) -> Linear:
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["0"])
    config._register_custom_module({torch.nn.Linear: kind})
    module = get_peft_model(torch.nn.Sequential(layer), config).base_model.model[0]
    assert type(module) is kind
    torch.nn.init.normal_(module.lora_B["default"].weight)
    return module


@pytest.mark.parametrize("half", [False, True], ids=["float32", "autocast"])
def test_lora_gives_what_peft_gives(*, half: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 12).requires_grad_(False)
    inputs = torch.randn(2, 5, 8)
    found = []
    for kind in (Linear, LoraLinear):
        module = _adapted(layer, kind)
        x = inputs.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            y = module(x)
        y.square().sum().backward()
        factors = [module.lora_A["default"].weight, module.lora_B["default"].weight]
        found.append([y.detach(), x.grad, *(factor.grad for factor in factors)])
    for theirs, ours in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        close = {"atol": 0.5, "rtol": 0.05} if half else {}
        torch.testing.assert_close(ours, theirs, **close)


def test_a_disabled_or_merged_layer_equals_that_of_peft() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 12).requires_grad_(False)
    x = torch.randn(2, 5, 8)
    plain = layer(x)
    module = _adapted(layer, LoraLinear)
    trained = module(x).detach()
    module.enable_adapters(enabled=False)
    assert torch.equal(module(x), plain)
    module.enable_adapters(enabled=True)
    module.merge()
    torch.testing.assert_close(module(x), trained)


def test_an_adapter_has_none_of_peft_s_own_layers(tiny_backbone: Path) -> None:
    body = body_of(AutoModelForCausalLM.from_pretrained(tiny_backbone))
    adapted = add_adapter(body, recipe.Lora(r=4, alpha=8, dropout=0.0), K)
    kinds = [type(module) for module in adapted.modules()]
    assert Linear not in kinds
    assert TrainableTokensLayer not in kinds
    assert kinds.count(LoraLinear) > kinds.count(MemoryEmbedding) == 1


def _trained_adapter(backbone: Path) -> PeftModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(backbone).requires_grad_(False)
    adapted = add_adapter(body_of(model), recipe.Lora(r=4, alpha=8, dropout=0.0), K).eval()
    with torch.no_grad():
        for parameter in trainable_parameters(adapted).values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return adapted


def _states(model: torch.nn.Module) -> Tensor:
    size = len(token_table(model).weight)
    with torch.no_grad():
        return model(torch.tensor([[1, 30, 40, size - 2, size - 1]])).last_hidden_state


def test_stock_peft_loads_and_merges_what_is_saved(tiny_backbone: Path, tmp_path: Path) -> None:
    adapted = _trained_adapter(tiny_backbone)
    adapted.save_pretrained(str(tmp_path), save_embedding_layers=False)
    body = body_of(AutoModelForCausalLM.from_pretrained(tiny_backbone))
    stock = PeftModel.from_pretrained(body, str(tmp_path)).eval()
    kinds = {type(module) for module in stock.modules()}
    assert {Linear, TrainableTokensLayer} <= kinds
    assert not {LoraLinear, MemoryEmbedding} & kinds
    assert list(adapted.state_dict()) == list(stock.state_dict())
    expected = _states(adapted)
    torch.testing.assert_close(_states(stock), expected, atol=1e-5, rtol=1e-5)
    for model in (stock, adapted):
        torch.testing.assert_close(_states(model.merge_and_unload()), expected, atol=1e-5, rtol=0)


def test_a_disabled_adapter_leaves_the_original_model(tiny_backbone: Path) -> None:
    original = _states(body_of(AutoModelForCausalLM.from_pretrained(tiny_backbone)).eval())
    adapted = _trained_adapter(tiny_backbone)
    assert not torch.allclose(_states(adapted), original, atol=1e-3)
    with adapted.disable_adapter():
        assert torch.equal(_states(adapted), original)
