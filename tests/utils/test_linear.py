"""Linear layers by oneDNN compute what stock layers compute, and change nothing else."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel

from llm2comp.evaluation import baselines, store
from llm2comp.inference.load import load_in
from llm2comp.utils import hardware
from llm2comp.utils.linear import OneDnnLinear, use_onednn


@pytest.fixture(autouse=True)
def amd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_processor_flags", lambda: frozenset({"AuthenticAMD", "avx2"}))


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Return the shapes of the inputs that oneDNN multiplies."""
    shapes: list[tuple[int, ...]] = []
    product = torch.ops.mkldnn._linear_pointwise

    def note(x: Tensor, *rest: Any) -> Tensor:
        shapes.append(tuple(x.shape))
        return product(x, *rest)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", note)
    return shapes


def pair(bias: bool) -> tuple[nn.Linear, nn.Linear]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stock = nn.Linear(33, 17, bias=bias)
    ours = copy.deepcopy(stock)
    use_onednn(ours)
    return stock, ours


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(33,), (5, 33), (2, 3, 33), (0, 33), (1, 1, 33)])
def test_values_are_those_of_the_stock_layer(
    shape: tuple[int, ...], bias: bool, products: list[tuple[int, ...]]
) -> None:
    stock, ours = pair(bias)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), stock(x), rtol=1e-5, atol=1e-5)
    assert bool(products) == (len(shape) > 1)


def test_with_gradients_the_stock_product_computes(products: list[tuple[int, ...]]) -> None:
    stock, ours = pair(bias=True)
    x = torch.randn(4, 33, generator=torch.Generator().manual_seed(0))
    for layer in (stock, ours):
        layer(x).square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, stock.weight.grad, rtol=1e-5, atol=1e-5)
    assert products == []


def test_rows_and_columns_that_are_not_contiguous() -> None:
    stock, ours = pair(bias=True)
    x = torch.randn(3, 7, 66)
    with torch.inference_mode():
        for view in (x[..., 1::2], x.transpose(0, 1)[..., :33], x[:, :1, :33].expand(3, 7, 33)):
            torch.testing.assert_close(ours(view), stock(view), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_another_dtype_is_left_to_pytorch(
    dtype: torch.dtype, products: list[tuple[int, ...]]
) -> None:
    stock, ours = (layer.to(dtype) for layer in pair(bias=True))
    x = torch.randn(4, 33, dtype=dtype)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), stock(x))
    assert products == []


def test_autocast_computes_in_bfloat16(products: list[tuple[int, ...]]) -> None:
    _, ours = pair(bias=False)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert ours(torch.randn(4, 33)).dtype == torch.bfloat16
    assert products == []


def test_layers_stay_as_they_are_where_mkl_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_processor_flags", lambda: frozenset({"GenuineIntel", "avx2"}))
    layer = nn.Sequential(nn.Linear(3, 2))
    use_onednn(layer)
    assert type(layer[0]) is nn.Linear
    assert layer[0].weight.is_contiguous()


def test_a_model_in_bfloat16_stays_as_it_is() -> None:
    layer = nn.Sequential(nn.Linear(3, 2, dtype=torch.bfloat16))
    use_onednn(layer)
    assert type(layer[0]) is nn.Linear
    assert layer[0].weight.is_contiguous()


def test_a_subclass_of_another_library_is_left_alone() -> None:
    class Special(nn.Linear):
        pass

    model = nn.Sequential(Special(3, 2), nn.Linear(2, 2))
    use_onednn(model)
    assert [type(layer) for layer in model] == [Special, OneDnnLinear]


def test_an_encoder_encodes_saves_and_is_fingerprinted_as_before(
    tiny_backbone: Path, tmp_path: Path, products: list[tuple[int, ...]], sentences: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = tmp_path / "mean"
    baselines.build("mean", tiny_backbone).save_pretrained(str(folder))
    ours = load_in(str(folder))
    assert isinstance(ours[0].model.layers[0].mlp.up_proj, OneDnnLinear)
    found = ours.encode(sentences)
    assert products
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        torch.testing.assert_close(copied.encode(sentences), found, rtol=0, atol=0)
    ours.save_pretrained(str(tmp_path / "again"))
    monkeypatch.setattr(hardware, "_processor_flags", lambda: frozenset({"GenuineIntel"}))
    plain = load_in(str(folder))
    torch.testing.assert_close(plain.encode(sentences), found, rtol=1e-5, atol=1e-6)
    assert store.fingerprint(plain) == store.fingerprint(ours)
    again = AutoModel.from_pretrained(tmp_path / "again")
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, plain[0].model.state_dict()[name])
