"""One set of weights: training the encoder leaves the decoder, the original model, unchanged."""

import hashlib
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm2comp import recipe
from llm2comp.model.compressor import Compressor
from llm2comp.model.lora import trainable_parameters
from llm2comp.model.memory_tokens import add_memory_tokens
from llm2comp.training.objectives.batch import Batch
from llm2comp.training.objectives.distillation import Distillation

K = 2
IDS = torch.tensor([[1, 20, 30, 40, 50, 60], [1, 5, 6, 7, 8, 9]])


def make(
    backbone: Path,
    *,
    causal: bool = False,
    dropout: float = 0.0,
    scale: Literal["none", "embeddings"] = "none",
) -> Compressor:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(backbone)
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    add_memory_tokens(model, tokenizer, recipe.Memory(tokens=K), seed=0)
    lora = recipe.Lora(r=4, alpha=8, dropout=dropout)
    return Compressor(model, K, lora, bos_id=tokenizer.bos_token_id, causal=causal, scale=scale)


def make_batch(compressor: Compressor) -> Batch:
    return Batch.of(
        [list(range(20, 36)), list(range(90, 100))],
        [9, 4],
        memory_ids=compressor.memory_ids,
        bos_id=compressor.bos_id,
        pad_id=0,
    )


def step(compressor: Compressor, optimizer: torch.optim.Optimizer) -> Tensor:
    batch = make_batch(compressor)
    loss = Distillation().loss(compressor, batch)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def frozen_hash(compressor: Compressor) -> str:
    digest = hashlib.sha256()
    for _, parameter in sorted(compressor.named_parameters()):
        if not parameter.requires_grad:
            digest.update(parameter.detach().numpy().tobytes())
    return digest.hexdigest()


def teacher_logits(compressor: Compressor) -> Tensor:
    targets = torch.ones_like(IDS, dtype=torch.bool)
    return compressor.logits(compressor.teacher_states(IDS, targets))


def test_training_lowers_the_loss_and_leaves_the_language_model_bit_equal(
    tiny_backbone: Path,
) -> None:
    original = AutoModelForCausalLM.from_pretrained(tiny_backbone)
    with torch.no_grad():
        expected = original(IDS).logits.reshape(-1, original.config.vocab_size)
    compressor = make(tiny_backbone)
    before = frozen_hash(compressor)
    assert torch.equal(teacher_logits(compressor), expected)
    optimizer = torch.optim.AdamW(trainable_parameters(compressor).values(), lr=5e-3)
    losses = [step(compressor, optimizer) for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]
    assert torch.equal(teacher_logits(compressor), expected)
    assert frozen_hash(compressor) == before


def test_only_lora_and_memory_embeddings_train(tiny_backbone: Path) -> None:
    trained = trainable_parameters(make(tiny_backbone))
    rows = [p for name, p in trained.items() if "trainable_tokens_delta" in name]
    assert [tuple(row.shape) for row in rows] == [(K, 32)]
    assert all("lora_" in name for name in trained if "trainable_tokens_delta" not in name)


def test_compress_does_not_depend_on_padding_side(tiny_backbone: Path) -> None:
    compressor = make(tiny_backbone).eval()
    text = torch.tensor([[1, 20, 30, 40, *compressor.memory_ids]])
    alone = compressor.compress(text, torch.ones_like(text))
    assert alone.shape == (1, K, 32)
    for side in ((0, 5), (5, 0)):
        ids = torch.nn.functional.pad(text, side)
        mask = torch.nn.functional.pad(torch.ones_like(text), side)
        torch.testing.assert_close(compressor.compress(ids, mask), alone, atol=1e-5, rtol=0)


def test_the_first_memory_token_sees_the_last_only_if_bidirectional(
    tiny_backbone: Path,
) -> None:
    for causal in (True, False):
        compressor = make(tiny_backbone, causal=causal).eval()
        text = torch.tensor([[1, 20, 30, *compressor.memory_ids]])
        mask = torch.ones_like(text)
        before = compressor.compress(text, mask)[0, 0]
        with torch.no_grad():
            for name, rows in trainable_parameters(compressor).items():
                if "trainable_tokens_delta" in name:
                    rows[-1] += 1.0
        moved = not torch.allclose(compressor.compress(text, mask)[0, 0], before, atol=1e-6)
        assert moved is not causal


def test_gradient_checkpointing_recomputes_with_the_right_adapter_state(
    tiny_backbone: Path,
) -> None:
    gradients = []
    for checkpointing in (False, True):
        compressor = make(tiny_backbone).train()
        if checkpointing:
            compressor.enable_gradient_checkpointing()
        with torch.no_grad():
            for parameter in trainable_parameters(compressor).values():
                parameter.add_(0.1)
        batch = make_batch(compressor)
        Distillation().loss(compressor, batch).backward()
        gradients.append([p.grad for p in trainable_parameters(compressor).values()])
    assert any(g.abs().max() > 0 for g in gradients[0])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


def test_the_backward_pass_computes_each_layer_once_more_and_searches_no_modules(
    tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT's `disable_adapter` searched all modules for each layer that was computed again."""
    compressor = make(tiny_backbone).train()
    compressor.enable_gradient_checkpointing()
    loss = Distillation().loss(compressor, make_batch(compressor))
    calls: list[str] = []
    for layer in compressor.body.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: calls.append("mlp"))
    searched: list[str] = []
    search = nn.Module.named_modules

    def watched(self: nn.Module, *args: Any, **options: Any) -> Any:
        searched.append(type(self).__name__)
        return search(self, *args, **options)

    monkeypatch.setattr(nn.Module, "named_modules", watched)
    loss.backward()
    assert len(calls) == 2 * len(compressor.body.layers)  # encoder and student
    assert searched == []


def test_frozen_blocks_nest_and_leave_the_adapter_as_it_was(tiny_backbone: Path) -> None:
    compressor = make(tiny_backbone)
    with torch.no_grad():
        for parameter in trainable_parameters(compressor).values():
            parameter.add_(0.1)
    mask = torch.ones_like(IDS)
    adapted = compressor.encode(IDS, mask)
    with compressor.adapted.disable_adapter():  # PEFT's own switch is the reference
        original = compressor.encode(IDS, mask)
    with compressor.frozen():
        with compressor.frozen():
            assert torch.equal(compressor.encode(IDS, mask), original)
        assert torch.equal(compressor.encode(IDS, mask), original)
    assert torch.equal(compressor.encode(IDS, mask), adapted)
    assert not torch.equal(adapted, original)


def test_an_adapter_is_read_again_and_another_shape_is_refused(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    compressor = make(tiny_backbone)
    optimizer = torch.optim.AdamW(trainable_parameters(compressor).values(), lr=1e-2)
    step(compressor, optimizer)
    compressor.save_adapter(tmp_path / "adapter")
    other = make(tiny_backbone)
    other.load_adapter(tmp_path / "adapter")
    for name, parameter in trainable_parameters(compressor).items():
        assert torch.equal(parameter, trainable_parameters(other)[name])
    model = AutoModelForCausalLM.from_pretrained(tiny_backbone)
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)
    add_memory_tokens(model, tokenizer, recipe.Memory(tokens=K), seed=0)
    wider = Compressor(model, K, recipe.Lora(r=8), bos_id=1, causal=True)
    with pytest.raises(RuntimeError, match="of another shape"):
        wider.load_adapter(tmp_path / "adapter")


def test_scaled_memory_has_the_norm_of_token_embeddings(tiny_backbone: Path) -> None:
    compressor = make(tiny_backbone, scale="embeddings")
    memory = torch.randn(3, K, compressor.body.config.hidden_size) * 50
    assert make(tiny_backbone).as_input(memory) is memory
    table = compressor.body.get_input_embeddings().weight[:-K]
    mean_norm = table.norm(dim=-1).mean()
    scaled = compressor.as_input(memory)
    torch.testing.assert_close(scaled.norm(dim=-1), mean_norm.expand(3, K))
    cosine = torch.cosine_similarity(scaled, memory, dim=-1)
    torch.testing.assert_close(cosine, torch.ones(3, K))
