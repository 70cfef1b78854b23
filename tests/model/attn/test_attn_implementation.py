"""Every implementation of attention gives what eager gives, and is told what eager is told."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers import AutoModel, LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import LlamaAttention

import llm2comp
from llm2comp.errors import UserError
from llm2comp.model import attention, backbone
from llm2comp.model.attention import configure_attention, require_attention
from llm2comp.model.backbone import load_backbone
from llm2comp.model.compressor import Compressor
from llm2comp.model.lora import trainable_parameters
from llm2comp.model.memory_tokens import add_memory_tokens
from llm2comp.recipe import Recipe, load_recipe
from llm2comp.recipe_parts import Lora, Memory
from llm2comp.training import pipeline
from llm2comp.utils import hardware

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="stand-ins for a processor")

IMPLEMENTATIONS = ["sdpa", "flash_attention_2", "flex_attention"]


@pytest.fixture
def stand_ins(flash_attention_2: list[bool], flex_attention: None) -> list[bool]:
    return flash_attention_2


def _compressor(folder: Path, implementation: str, *, causal: bool) -> Compressor:
    model, tokenizer = load_backbone(str(folder))
    add_memory_tokens(model, tokenizer, Memory(tokens=4), 0)
    configure_attention(model, implementation)
    torch.manual_seed(1)
    compressor = Compressor(
        model, 4, Lora(r=4, dropout=0), bos_id=1, causal=causal, scale="embeddings"
    )
    for parameter in trainable_parameters(compressor).values():
        torch.nn.init.normal_(parameter, std=0.1)  # LoRA's B would be 0
    return compressor.train()


def _texts(compressor: Compressor, padding: str) -> tuple[Tensor, Tensor]:
    """Return ids and mask of three texts, each with BOS and its memory tokens."""
    lengths = (20, 20, 20) if padding == "none" else (20, 13, 8)
    ids, mask = torch.zeros(3, 20, dtype=torch.long), torch.zeros(3, 20, dtype=torch.long)
    for row, length in enumerate(lengths):
        columns = slice(20 - length, 20) if padding == "left" else slice(0, length)
        text = torch.arange(length - 5) * (row + 3) % 200 + 20
        ids[row, columns] = torch.cat([torch.ones(1), text, torch.tensor(compressor.memory_ids)])
        mask[row, columns] = 1
    return ids, mask


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_memory_student_and_gradients_are_those_of_eager(
    stand_ins: list[bool], tiny_backbone: Path, implementation: str, padding: str, causal: bool
) -> None:
    found: list[dict[str, Tensor]] = []
    for name in ("eager", implementation):
        compressor = _compressor(tiny_backbone, name, causal=causal)
        ids, mask = _texts(compressor, padding)
        memory = compressor.compress(ids, mask)
        targets = torch.ones(3, 7, dtype=torch.bool)
        states = compressor.student_states(compressor.as_input(memory), ids[:, :6] % 250, targets)
        teacher = compressor.teacher_states(ids[:, :7] % 250, targets)
        (states - teacher).square().sum().backward()
        gradients = {n: p.grad for n, p in trainable_parameters(compressor).items()}
        found.append({"memory": memory, "states": states, "teacher": teacher} | gradients)
    for name, tensor in found[0].items():
        assert tensor.any(), name
        difference = (found[1][name] - tensor).abs().max() / tensor.abs().max()
        assert difference <= 1e-5, name


def test_flash_attention_is_told_that_the_encoder_sees_all_and_the_decoder_does_not(
    stand_ins: list[bool], tiny_backbone: Path
) -> None:
    compressor = _compressor(tiny_backbone, "flash_attention_2", causal=False)
    ids, mask = _texts(compressor, "right")
    stand_ins.clear()
    compressor.compress(ids, mask)
    assert stand_ins
    assert not any(stand_ins)
    stand_ins.clear()
    compressor.teacher_states(ids[:, :7], torch.ones(3, 7, dtype=torch.bool))
    assert stand_ins
    assert all(stand_ins)


def test_a_model_whose_attention_would_stay_causal_is_refused(
    stand_ins: list[bool], monkeypatch: pytest.MonkeyPatch, tiny_backbone: Path
) -> None:
    own = LlamaAttention.forward

    def deaf(*args: Any, is_causal: bool | None = None, **options: Any) -> Any:
        return own(*args, **options)

    monkeypatch.setattr(LlamaAttention, "forward", deaf)
    with pytest.raises(UserError, match="attention is not bidirectional"):
        load_backbone(str(tiny_backbone), attn_implementation="flash_attention_2")


def _train(settings: Recipe, out: Path, stages: int = 2) -> dict[str, Tensor]:
    settings = settings.model_copy(update={"stages": settings.stages[:stages]})
    pipeline.train(settings, out, Console(quiet=True))
    return load_file(out / "model" / "model.safetensors")


@pytest.mark.parametrize(
    "implementation",
    ["flash_attention_2", pytest.param("flex_attention", marks=pytest.mark.exhaustive)],
)
def test_a_run_whose_attention_is_opened_ends_with_the_weights_of_an_eager_one(
    stand_ins: list[bool],
    monkeypatch: pytest.MonkeyPatch,
    tiny_recipe: Path,
    tmp_path: Path,
    implementation: str,
) -> None:
    monkeypatch.setattr(backbone, "require_attention", lambda *_, **__: None)
    monkeypatch.setattr(hardware, "native_bfloat16", lambda: False)
    small = ["pretext.steps=4", "pretext.bidirectional_from_step=2", "pretext.split.ramp_steps=0"]
    small += [
        "unsupervised.steps=2",
        "unsupervised.attention_dropout=0",
        "unsupervised.eval_pairs=0",
    ]
    eager, other = (
        _train(
            load_recipe(tiny_recipe, [*small, f"backbone.attn_implementation={name}"]),
            tmp_path / name,
        )
        for name in ("eager", implementation)
    )
    assert eager.keys() == other.keys()
    for name, tensor in eager.items():
        torch.testing.assert_close(other[name], tensor, atol=1e-4, rtol=1e-4, msg=name)
    if implementation == "flash_attention_2":
        assert set(stand_ins) == {True, False}


@pytest.mark.parametrize("implementation", ["eager", "flex_attention"])
def test_an_encoder_is_loaded_with_the_attention_that_is_asked_for(
    flex_attention: None,
    tiny_recipe: Path,
    tmp_path: Path,
    sentences: list[str],
    implementation: str,
) -> None:
    settings = load_recipe(tiny_recipe, ["pretext.steps=0", "pretext.attention=bidirectional"])
    _train(settings, tmp_path / "run", stages=1)
    folder = str(tmp_path / "run" / "model")
    model = llm2comp.load(folder, "float32", attn_implementation=implementation)
    assert model[0].model.config._attn_implementation == implementation
    stock = SentenceTransformer(folder, device="cpu")
    np.testing.assert_allclose(model.encode(sentences), stock.encode(sentences), atol=1e-5)


@pytest.mark.exhaustive
@pytest.mark.parametrize("mode", [{}, {"is_causal": False}], ids=["causal", "bidirectional"])
def test_the_real_flex_attention_has_the_states_of_eager(
    tiny_backbone: Path, mode: dict[str, bool]
) -> None:
    """A processor computes it without gradients. It needs a C++ compiler."""
    body = AutoModel.from_pretrained(tiny_backbone)
    ids, mask = torch.arange(60).view(3, 20) + 20, torch.ones(3, 20, dtype=torch.long)
    mask[0, :7] = mask[1, 15:] = 0
    found = []
    for name in ("eager", "flex_attention"):
        configure_attention(body, name)
        with torch.no_grad():
            found.append(body(ids, attention_mask=mask, **mode).last_hidden_state[mask.bool()])
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("implementation", "training", "expected"),
    [
        ("flash_attention_2", False, "needs a GPU, and there is none here"),
        ("flex_attention", True, "needs a GPU to train, and there is none here"),
    ],
)
def test_what_a_processor_lacks_is_said_before_anything_is_read(
    implementation: str, training: bool, expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        require_attention(implementation, torch.bfloat16, training=training)
    require_attention("sdpa", torch.float32, training=True)
    require_attention("flex_attention", torch.float32, training=False)


def test_what_a_gpu_lacks_is_said_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    require = partial(require_attention, "flash_attention_2", training=True)
    with pytest.raises(UserError, match="pip install flash-attn --no-build-isolation"):
        require(torch.bfloat16)
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: True)
    with pytest.raises(UserError, match="has no float32"):
        require(torch.float32)
    require(torch.bfloat16)


def test_a_run_stops_before_it_writes_anything(tiny_recipe: Path, tmp_path: Path) -> None:
    settings = load_recipe(tiny_recipe, ["backbone.attn_implementation=flash_attention_2"])
    with pytest.raises(UserError, match="attn_implementation: flash_attention_2 needs a GPU"):
        pipeline.train(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_loading_with_an_attention_that_is_not_there_is_one_line() -> None:
    with pytest.raises(UserError, match="needs a GPU"):
        llm2comp.load("minilm", attn_implementation="flash_attention_2")
    with pytest.raises(UserError, match="'flash' is not one of eager, flash_attention_2, "):
        llm2comp.load("minilm", attn_implementation="flash")


def test_a_model_that_cannot_attend_so_is_refused(
    monkeypatch: pytest.MonkeyPatch, tiny_backbone: Path
) -> None:
    monkeypatch.setattr(LlamaForCausalLM, "_supports_flex_attn", False)
    with pytest.raises(UserError, match=r"LlamaForCausalLM cannot attend by flex_attention \(Ll"):
        load_backbone(str(tiny_backbone), attn_implementation="flex_attention")
    monkeypatch.setattr(LlamaModel, "_can_set_attn_implementation", lambda *_: False)
    with pytest.raises(UserError, match="the attention of this model cannot be chosen"):
        configure_attention(AutoModel.from_pretrained(tiny_backbone), "eager")


def test_an_explicit_sdpa_is_the_one_of_pytorch(tiny_backbone: Path) -> None:
    chosen, _ = load_backbone(str(tiny_backbone), attn_implementation="sdpa")
    default, _ = load_backbone(str(tiny_backbone))
    assert chosen.config._attn_implementation == "sdpa"
    assert default.config._attn_implementation == attention.NAME


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["backbone.attn_implementation=flash"], "'eager'.*'flash_attention_2'.*'sdpa'"),
        (
            ["backbone.attn_implementation=flash_attention_2", "backbone.dtype=float32"],
            "flash_attention_2 has no float32; set dtype=bfloat16",
        ),
        (
            ["backbone.attn_implementation=flash_attention_2", "unsupervised.lora=null"],
            "unsupervised trains all weights",
        ),
        (
            ["backbone.attn_implementation=flex_attention"],
            "flex_attention has no dropout; set unsupervised.attention_dropout=0",
        ),
    ],
)
def test_what_cannot_go_together_is_refused_when_the_recipe_is_read(
    tiny_recipe: Path, changes: list[str], expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        load_recipe(tiny_recipe, changes)
