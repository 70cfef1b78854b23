"""Attention by products equals transformers' sdpa: states, gradients, masks, saved folders."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AttentionInterface,
    AutoModel,
    Gemma3TextConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from llm2comp.model import attention
from llm2comp.model.attention import changes_window

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="for processors")


class _Layer(torch.nn.Module):
    is_causal = True
    num_key_value_groups = 2


@pytest.fixture
def body(tiny_backbone: Path) -> PreTrainedModel:
    return AutoModel.from_pretrained(tiny_backbone)


def _states(body: PreTrainedModel, mask: torch.Tensor, **mode: bool) -> torch.Tensor:
    ids = torch.arange(mask.numel()).view(mask.shape) % 200 + 20
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    states = body(ids, attention_mask=mask, position_ids=positions, **mode).last_hidden_state
    return states[mask.bool()]


@pytest.mark.parametrize("mode", [{}, {"is_causal": False}], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("block", [7, 20, 100], ids=["of 7", "of 20", "of 100"])
def test_states_and_gradients_are_those_of_sdpa(
    monkeypatch: pytest.MonkeyPatch,
    body: PreTrainedModel,
    mode: dict[str, bool],
    padding: str,
    block: int,
) -> None:
    monkeypatch.setattr(attention, "BLOCK", block)
    mask = torch.ones(3, 20, dtype=torch.long)
    if padding != "none":
        mask[1, :7] = 0
        mask = mask if padding == "left" else mask.flip(1)
    found = []
    for use in (lambda _: None, attention.use_matmul_attention):
        use(body)
        body.zero_grad()
        states = _states(body, mask, **mode)
        states.square().sum().backward()
        found.append((states.detach(), body.layers[0].self_attn.q_proj.weight.grad.clone()))
    assert body.config._attn_implementation == attention.NAME
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-3, rtol=1e-3)


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """Return the options of every call of transformers' sdpa."""
    called = []

    def note(*given: object, **options: object) -> tuple[None, None]:
        called.append(options)
        return None, None

    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", note)
    return called


@pytest.mark.parametrize(
    ("length", "dtype", "causal", "trained", "products"),
    [
        (attention.SHORT, torch.float32, False, True, True),
        (attention.SHORT + 1, torch.float32, False, False, False),
        (attention.SHORT + 1, torch.float32, True, False, True),
        (attention.SHORT + 1, torch.bfloat16, False, False, True),
        (attention.LONGEST_TRAINED, torch.bfloat16, True, True, True),
        (attention.LONGEST_TRAINED + 1, torch.bfloat16, True, True, False),
        (attention.LONGEST_TRAINED + 1, torch.bfloat16, True, False, True),
        (8, torch.float64, True, False, False),
    ],
)
def test_products_where_they_are_faster_and_memory_allows(
    fused: list[dict[str, object]],
    length: int,
    dtype: torch.dtype,
    causal: bool,
    trained: bool,
    products: bool,
) -> None:
    query, key = (torch.randn(1, heads, length, 8, dtype=dtype) for heads in (4, 2))
    with torch.set_grad_enabled(trained):
        attention.attend(_Layer(), query, key, key, None, scaling=0.3, is_causal=causal)
    assert len(fused) == (not products)
    assert all(options["scaling"] == 0.3 and options["is_causal"] is causal for options in fused)


def test_later_keys_are_skipped_only_if_no_query_of_the_block_sees_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "BLOCK", 4)
    query, key = torch.randn(1, 4, 10, 8), torch.randn(1, 2, 10, 8)
    mask = torch.ones(10, 10, dtype=torch.bool).tril()[None, None]
    mask[..., 4, 9] = True  # a query of the second block sees a key of the third
    found, _ = attention.attend(_Layer(), query, key, key, mask)
    weights = (query @ key.repeat_interleave(2, 1).mT / 8**0.5).masked_fill(~mask, -torch.inf)
    expected = weights.softmax(-1) @ key.repeat_interleave(2, 1)
    torch.testing.assert_close(found, expected.transpose(1, 2))


def test_a_mask_may_be_boolean_or_additive_and_of_another_dtype() -> None:
    query, key = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 6, 8)
    masks = [torch.ones(1, 1, 6, 6, dtype=torch.bool).tril(place) for place in (0, 2)]
    exact = [attention.attend(_Layer(), query, key, key, mask)[0] for mask in masks]
    assert not torch.equal(*exact)
    additive = attention._additive(masks[0], torch.float32)
    again = attention.attend(_Layer(), query, key, key, additive)[0]
    torch.testing.assert_close(again, exact[0], rtol=0, atol=0)
    for mask in (masks[0], additive):  # under autocast queries are bfloat16 and masks float32
        half = attention.attend(_Layer(), query.bfloat16(), key.bfloat16(), key.bfloat16(), mask)[0]
        torch.testing.assert_close(half.float(), exact[0], atol=0.05, rtol=0.05)


def test_a_forward_pass_makes_one_additive_mask_for_all_layers(
    monkeypatch: pytest.MonkeyPatch, body: PreTrainedModel
) -> None:
    made, received = [], []
    convert, attend = attention._additive, attention.attend

    def count(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        made.append(mask.dtype)
        return convert(mask, dtype)

    def note(module: torch.nn.Module, *tensors: torch.Tensor, **options: object) -> object:
        received.append(tensors[3])
        return attend(module, *tensors, **options)

    monkeypatch.setattr(attention, "_additive", count)
    monkeypatch.setitem(AttentionInterface._global_mapping, attention.NAME, note)
    attention.use_matmul_attention(body)
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[0, :3] = 0
    _states(body, mask)
    assert len(received) == body.config.num_hidden_layers > 1
    assert all(given is received[0] for given in received)
    assert made.count(torch.bool) == 1


@pytest.mark.parametrize("length", [20, 600], ids=["products", "sdpa"])
@pytest.mark.parametrize(
    ("dtype", "mask_dtype"),
    [
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
    ],
)
def test_a_query_that_sees_nothing_stays_finite(
    length: int, dtype: torch.dtype, mask_dtype: torch.dtype
) -> None:
    mask = torch.ones(1, 1, length, length, dtype=torch.bool)
    mask[..., :5, :] = False
    query, key = (torch.randn(1, heads, length, 8, dtype=dtype) for heads in (4, 2))
    states, _ = attention.attend(_Layer(), query, key, key, attention._additive(mask, mask_dtype))
    assert states.isfinite().all()


@pytest.mark.parametrize("mode", [{}, {"is_causal": False}], ids=["causal", "bidirectional"])
def test_autocast_and_long_texts_give_the_states_of_sdpa(
    body: PreTrainedModel, mode: dict[str, bool]
) -> None:
    mask = torch.ones(2, attention.LONGEST_TRAINED + 40, dtype=torch.long)
    mask[1, :50] = 0
    states = []
    for use in (lambda _: None, attention.use_matmul_attention):
        use(body)
        with torch.autocast("cpu", torch.bfloat16):
            states.append(_states(body, mask, **mode).detach().float())
    assert torch.cosine_similarity(*states, dim=-1).min() > 0.995


def test_a_compiled_model_gives_the_states_of_sdpa(body: PreTrainedModel) -> None:
    mask = torch.ones(2, 30, dtype=torch.long)
    mask[1, :9] = 0
    expected = _states(body, mask)
    attention.use_matmul_attention(body)
    body.compile(backend="eager")
    torch.testing.assert_close(_states(body, mask), expected, atol=1e-5, rtol=1e-4)


def test_dropout_drops_its_share_of_the_weights() -> None:
    torch.manual_seed(0)
    value = torch.eye(50).expand(4, 2, 50, 50)
    key = torch.zeros(4, 2, 50, 50)
    query = torch.zeros(4, 4, 50, 50)  # all weights are equal
    weights, _ = attention.attend(_Layer(), query, key, value, None, dropout=0.2, is_causal=False)
    assert (weights == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert weights[weights > 0].unique().item() == pytest.approx(1 / 50 / 0.8)


def test_bfloat16_stays_close_to_float32(body: PreTrainedModel) -> None:
    mask = torch.ones(2, 30, dtype=torch.long)
    exact = _states(body, mask)
    body.bfloat16()
    attention.use_matmul_attention(body)
    assert torch.cosine_similarity(exact, _states(body, mask).float(), dim=-1).min() > 0.999


def test_a_saved_model_does_not_name_this_attention(body: PreTrainedModel, tmp_path: Path) -> None:
    attention.use_matmul_attention(body)
    body.save_pretrained(tmp_path)
    assert attention.NAME not in (tmp_path / "config.json").read_text()
    assert AutoModel.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


def test_another_attention_than_sdpa_is_kept(tiny_backbone: Path) -> None:
    body = AutoModel.from_pretrained(tiny_backbone, attn_implementation="eager")
    attention.use_matmul_attention(body)
    assert body.config._attn_implementation == "eager"


def test_a_window_that_changes_when_it_is_saved_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers before 5.23 writes the window of Gemma 3 as it was halved when it was read."""
    config = Gemma3TextConfig(sliding_window=512, use_bidirectional_attention=True)
    assert not changes_window(config)
    monkeypatch.setattr(Gemma3TextConfig, "to_dict", PreTrainedConfig.to_dict)
    assert changes_window(config)
    assert not changes_window(Gemma3TextConfig(sliding_window=512))
