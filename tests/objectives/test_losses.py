"""Each objective equals a literal reference: two separate full models, full logits, no batches."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm2comp import recipe
from llm2comp.compressor import Compressor, trainable_parameters
from llm2comp.memory import add_memory_tokens
from llm2comp.objectives import OBJECTIVES, Batch, rows

K = 3
PASSAGES = [list(range(20, 41)), list(range(60, 72)), [7, 9, 200, 31, 8, 100, 101, 102, 50]]
SPLITS = [12, 5, 1]


@pytest.fixture(params=[True, False], ids=["causal", "bidirectional"])
def compressor(request: pytest.FixtureRequest, tiny_backbone: Path) -> Compressor:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny_backbone).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)
    add_memory_tokens(model, tokenizer, recipe.Memory(tokens=K), seed=0)
    made = Compressor(
        model,
        K,
        recipe.Lora(r=4, alpha=8, dropout=0.0),
        bos_id=tokenizer.bos_token_id,
        causal=request.param,
    ).eval()
    with torch.no_grad():  # LoRA starts at zero, where encoder and decoder could not be told apart
        for parameter in trainable_parameters(made).values():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def make_batch(compressor: Compressor, pad_id: int = 0) -> Batch:
    return Batch.of(
        PASSAGES,
        SPLITS,
        memory_ids=compressor.memory_ids,
        bos_id=compressor.bos_id,
        pad_id=pad_id,
    )


class Reference:
    """The method as the paper writes it, with one model for each role and no batching."""

    def __init__(self, compressor: Compressor, backbone: Path) -> None:
        self.encoder = copy.deepcopy(compressor.adapted).merge_and_unload()
        self.decoder = AutoModelForCausalLM.from_pretrained(backbone).eval()
        self.causal = compressor.causal
        self.bos = compressor.bos_id
        self.memory_ids = compressor.memory_ids

    def memory(self, text: list[int]) -> Tensor:
        ids = torch.tensor([[self.bos, *text, *self.memory_ids]])
        mode = {} if self.causal else {"is_causal": False}
        return self.encoder(ids, **mode).last_hidden_state[0, -K:]

    def student(self, memory: Tensor, tokens: list[int]) -> Tensor:
        """Distributions after memory, and after each token behind it."""
        embed = self.decoder.get_input_embeddings()
        inputs = torch.cat([embed(torch.tensor([self.bos])), memory, embed(torch.tensor(tokens))])
        return self.decoder(inputs_embeds=inputs[None]).logits[0, K:].log_softmax(-1)

    def teacher(self, passage: list[int]) -> Tensor:
        """Distributions after BOS, and after each token of the passage."""
        return self.decoder(torch.tensor([[self.bos, *passage]])).logits[0].log_softmax(-1)

    def loss(self, objective: str, passage: list[int], a: int) -> Tensor:
        text, continuation = passage[:a], passage[a:]
        memory = self.memory(text)
        if objective == "distillation":
            student = self.student(memory, continuation)
            teacher = self.teacher(passage)[a:]
            return (teacher.exp() * (teacher - student)).sum(-1).mean()
        said = text if objective == "reconstruction" else continuation
        student = self.student(memory, said)
        return -torch.stack([student[i, token] for i, token in enumerate(said)]).mean()


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_equals_the_literal_reference(
    compressor: Compressor, tiny_backbone: Path, objective: str
) -> None:
    reference = Reference(compressor, tiny_backbone)
    expected = torch.stack(
        [reference.loss(objective, p, a) for p, a in zip(PASSAGES, SPLITS, strict=True)]
    ).mean()
    batch = make_batch(compressor)
    memory = compressor.compress(batch.input_ids, batch.attention_mask)
    loss = OBJECTIVES[objective](compressor, memory, batch)
    assert expected > 0.01
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_chunks_change_neither_loss_nor_gradient(
    compressor: Compressor, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make_batch(compressor)

    def loss_and_gradients() -> tuple[Tensor, list[Tensor]]:
        compressor.zero_grad()
        memory = compressor.compress(batch.input_ids, batch.attention_mask)
        loss = OBJECTIVES[objective](compressor, memory, batch)
        loss.backward()
        return loss, [p.grad.clone() for p in trainable_parameters(compressor).values()]

    whole, whole_gradients = loss_and_gradients()
    monkeypatch.setattr(rows, "CHUNK", 4)
    parts, part_gradients = loss_and_gradients()
    torch.testing.assert_close(parts, whole)
    assert any(gradient.abs().max() > 0 for gradient in whole_gradients)
    torch.testing.assert_close(part_gradients, whole_gradients, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_what_fills_the_padding_does_not_matter(compressor: Compressor, objective: str) -> None:
    losses = []
    for pad_id in (0, 77):
        batch = make_batch(compressor, pad_id)
        memory = compressor.compress(batch.input_ids, batch.attention_mask)
        losses.append(OBJECTIVES[objective](compressor, memory, batch))
    torch.testing.assert_close(losses[0], losses[1], atol=1e-6, rtol=0)


def test_a_split_outside_of_the_passage_is_refused() -> None:
    with pytest.raises(ValueError, match="not inside a passage of 3 tokens"):
        Batch.of([[1, 2, 3]], [3], memory_ids=[9], bos_id=None, pad_id=0)
