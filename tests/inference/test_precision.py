"""bfloat16 only where it is native and keeps the embeddings; checked once per model."""

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from llm2comp.errors import UserError
from llm2comp.evaluation import baselines
from llm2comp.inference import load as loading
from llm2comp.inference import precision
from llm2comp.inference.load import load, load_in
from llm2comp.utils import hardware

pytestmark = pytest.mark.usefixtures("empty_cache")


@pytest.fixture
def log() -> Iterator[list[str]]:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    precision.logger.addHandler(handler)
    precision.logger.setLevel(logging.INFO)
    yield lines
    precision.logger.removeHandler(handler)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """Pretend that the processor has bfloat16, and return the dtype of each load."""
    dtypes: list[torch.dtype] = []
    load_in = loading.load_in

    def note(name: str, dtype: torch.dtype = torch.float32, **options: Any) -> SentenceTransformer:
        dtypes.append(dtype)
        return load_in(name, dtype, **options)

    monkeypatch.setattr(hardware, "_processor_flags", lambda: frozenset({"avx512_bf16"}))
    monkeypatch.setattr(loading, "load_in", note)
    return dtypes


@pytest.fixture
def good(tiny_backbone: Path, tmp_path: Path) -> str:
    baselines.build("mean", tiny_backbone).save_pretrained(str(tmp_path / "good"))
    return str(tmp_path / "good")


@pytest.fixture
def bad(tiny_backbone: Path, tmp_path: Path) -> str:
    """An encoder that bfloat16 ruins: it depends on small differences between numbers near 1.

    The first half of the states holds those numbers, which differ by about 0.001. The attention
    writes their differences into the second half, and only the second half is the output.
    """
    built = baselines.build("mean", tiny_backbone)
    body = built[0].model
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        table = body.get_input_embeddings().weight
        table.zero_()[:, :16] = 1 + 1e-3 * torch.randn(len(table), 16)
        for layer in body.layers:
            layer.mlp.down_proj.weight.zero_()
            layer.self_attn.o_proj.weight[:16].zero_()
            values = layer.self_attn.v_proj.weight
            values[:, 16:].zero_()
            values[:, :16] -= values[:, :16].mean(1, keepdim=True)
        body.norm.weight[:16].zero_()
    built.save_pretrained(str(tmp_path / "bad"))
    return str(tmp_path / "bad")


def dtype_of(model: SentenceTransformer) -> torch.dtype:
    return next(model.parameters()).dtype


def test_a_model_that_keeps_its_embeddings_computes_in_bfloat16(
    good: str, loads: list[torch.dtype], log: list[str]
) -> None:
    model = load(good)
    assert dtype_of(model) == torch.bfloat16
    assert log[0].startswith(f"{good}: bfloat16, smallest cosine to float32 0.999")
    # The model that was checked is the one that is used: a fresh load gives the same bits.
    expected = load_in(good, torch.bfloat16).encode(["a text"])
    np.testing.assert_array_equal(model.encode(["a text"]), expected)


def test_a_model_that_bfloat16_changes_computes_in_float32(
    bad: str, loads: list[torch.dtype], log: list[str]
) -> None:
    assert dtype_of(load(bad)) == torch.float32
    assert log[0].startswith(f"{bad}: float32, bfloat16 would fall to a cosine of ")
    exact = load(bad).encode(["Whales", "coins"])
    assert exact[0] @ exact[1] < 0.99  # the encoder does tell texts apart


@pytest.mark.parametrize("kind", ["good", "bad"])
def test_the_result_of_a_check_is_cached_until_a_file_changes(
    kind: str, loads: list[torch.dtype], log: list[str], request: pytest.FixtureRequest
) -> None:
    name = request.getfixturevalue(kind)
    dtype = dtype_of(load(name))
    loads.clear()
    assert dtype_of(load(name)) == dtype
    assert loads == [dtype]
    assert log[0] == log[1]
    weights = Path(name) / "model.safetensors"
    weights.write_bytes(weights.read_bytes())
    loads.clear()
    load(name)
    assert loads[:2] == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_a_precision_that_is_asked_for_is_not_checked(
    bad: str, loads: list[torch.dtype], log: list[str], wanted: str
) -> None:
    assert dtype_of(load(bad, wanted)) == getattr(torch, wanted)
    assert len(loads) == 1
    assert log == [f"{bad}: {wanted}, as asked"]


def test_bfloat16_is_not_tried_where_it_is_not_native(
    good: str, loads: list[torch.dtype], log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "_processor_flags", lambda: frozenset({"avx2"}))
    load(good)
    assert loads == [torch.float32]
    assert log == [f"{good}: float32, bfloat16 is not native here"]


def test_a_cosine_of_nan_gives_float32(
    good: str, loads: list[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "smallest_cosine", lambda first, second: float("nan"))
    for _ in range(2):
        assert dtype_of(load(good)) == torch.float32


def test_a_model_whose_weights_are_not_finite_is_refused(
    good: str, loads: list[torch.dtype], empty_cache: Path
) -> None:
    broken = load_in(good)
    with torch.no_grad():
        broken[0].model.norm.weight.fill_(float("nan"))
    broken.save_pretrained(good)
    for _ in range(2):  # nothing is cached
        with pytest.raises(UserError, match="not finite"):
            load(good)
    assert loads == [torch.float32] * 2


def test_bfloat16_that_is_not_finite_gives_float32(
    good: str, loads: list[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    embed_samples = precision._embed_samples

    def overflow(model: SentenceTransformer) -> np.ndarray:
        embeddings = embed_samples(model)
        if dtype_of(model) == torch.bfloat16:
            embeddings[3] = np.inf
        return embeddings

    monkeypatch.setattr(precision, "_embed_samples", overflow)
    for _ in range(2):
        assert dtype_of(load(good)) == torch.float32


def test_an_unusable_cache_costs_only_time(
    good: str, loads: list[torch.dtype], empty_cache: Path
) -> None:
    empty_cache.write_text("a file in the way")
    for _ in range(2):
        assert dtype_of(load(good)) == torch.bfloat16
    assert len(loads) == 4


def test_the_check_includes_merging(
    good: str, loads: list[torch.dtype], log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    merged = []

    def merge(model: SentenceTransformer, threshold: float) -> SentenceTransformer:
        merged.append((dtype_of(model), threshold))
        return model

    monkeypatch.setattr(loading, "merge_memory", merge)
    load(good)
    load(good, merge_threshold=0.8)
    assert merged == [(torch.float32, 0.8), (torch.bfloat16, 0.8)]
    assert log[1].startswith(f"{good}, merged at 0.8: bfloat16")


def test_each_baseline_has_its_own_check(
    tiny_backbone: Path, loads: list[torch.dtype], log: list[str]
) -> None:
    def load(name: str, dtype: torch.dtype) -> SentenceTransformer:
        loads.append(dtype)
        return baselines.build(name, tiny_backbone, dtype)

    for name in ("mean", "echo"):
        precision.load_checked(name, "auto", partial(load, name), str(tiny_backbone))
    assert len(loads) == 4
    assert [line.split(":")[0] for line in log] == ["mean", "echo"]


def test_a_model_that_cannot_be_loaded_logs_nothing(log: list[str], either_processor: bool) -> None:
    def load(dtype: torch.dtype) -> SentenceTransformer:
        raise UserError("no such model")

    for wanted in ("auto", "float32", "bfloat16"):
        with pytest.raises(UserError):
            precision.load_checked("a model", wanted, load, "nowhere")
    assert log == []


def test_a_model_that_does_not_exist_is_one_clear_line(loads: list[torch.dtype]) -> None:
    with pytest.raises(UserError, match="no-such-model"):
        load("no-such-model")


def test_the_smallest_cosine_is_that_of_the_worst_text() -> None:
    first = np.array([[1, 0], [2, 0], [0, 3]], dtype=np.float32)
    second = np.array([[5, 0], [1, 1], [0, 1]], dtype=np.float32)
    assert precision.smallest_cosine(first, second) == pytest.approx(0.5**0.5)
    second[1] = np.nan
    assert np.isnan(precision.smallest_cosine(first, second))
