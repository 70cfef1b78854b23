"""What every objective must satisfy, and compression against a literal reference.

The reference uses two separate models, all logits at once and no batches.
"""

from pathlib import Path

import pytest
import torch
from subjects import PASSAGES, SPLITS, K, Subject, make_subject
from torch import Tensor

from llm2comp.model import compressor
from llm2comp.model.lora import trainable_parameters
from llm2comp.training.objectives import chunked_loss, embedding_prediction
from llm2comp.training.objectives.batch import Batch
from llm2comp.training.objectives.objective import Compression
from llm2comp.training.objectives.registry import OBJECTIVES

COMPRESSING = [name for name, kind in OBJECTIVES.items() if issubclass(kind, Compression)]
CASES = [
    (name, causal)
    for name, kind in OBJECTIVES.items()
    for causal in (True, False)
    if not (causal and kind.bidirectional)
]


@pytest.fixture(params=CASES, ids=[f"{n}-{'causal' if c else 'bidirectional'}" for n, c in CASES])
def case(request: pytest.FixtureRequest, tiny_backbone: Path) -> Subject:
    return make_subject(tiny_backbone, *request.param)


class Reference:
    """The method as the paper writes it, with one model for each role and no batching."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.decoder = subject.language_model()
        self.bos = subject.compressor.bos_id

    def memory(self, text: list[int]) -> Tensor:
        ids = [self.bos, *text, *self.subject.compressor.memory_ids]
        return self.subject.encoder_states(ids)[-K:]

    def student(self, memory: Tensor, tokens: list[int]) -> Tensor:
        """Distributions after memory, and after each token behind it."""
        embed = self.decoder.get_input_embeddings()
        inputs = torch.cat([embed(torch.tensor([self.bos])), memory, embed(torch.tensor(tokens))])
        return self.decoder(inputs_embeds=inputs[None]).logits[0, K:].log_softmax(-1)

    def teacher(self, passage: list[int]) -> Tensor:
        """Distributions after BOS, and after each token of the passage."""
        return self.decoder(torch.tensor([[self.bos, *passage]])).logits[0].log_softmax(-1)

    def loss(self, objective: str, passage: list[int], a: int) -> Tensor:
        text, continuation = (
            (passage, [])
            if objective == "reconstruction"
            else (
                passage[:a],
                passage[a:],
            )
        )
        memory = self.memory(text)
        if objective == "distillation":
            student = self.student(memory, continuation)
            teacher = self.teacher(passage)[a:]
            return (teacher.exp() * (teacher - student)).sum(-1).mean()
        said = text if "reconstruction" in objective else continuation
        student = self.student(memory, said)
        return -torch.stack([student[i, token] for i, token in enumerate(said)]).mean()


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("name", COMPRESSING)
def test_compression_equals_the_literal_reference(
    tiny_backbone: Path, name: str, causal: bool
) -> None:
    case = make_subject(tiny_backbone, name, causal)
    reference = Reference(case)
    expected = torch.stack(
        [reference.loss(name, p, a) for p, a in zip(PASSAGES, SPLITS, strict=True)]
    ).mean()
    assert expected > 0.01
    assert case.loss().item() == pytest.approx(expected.item(), abs=1e-5)


def loss_and_gradients(case: Subject) -> tuple[Tensor, list[Tensor]]:
    case.compressor.zero_grad()
    torch.manual_seed(0)
    loss = case.loss()
    loss.backward()
    return loss, [p.grad.clone() for p in trainable_parameters(case.compressor).values()]


@pytest.mark.parametrize("divided", ["rows of logits", "rows of a batch"])
def test_parts_change_neither_loss_nor_gradient(
    case: Subject, divided: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, whole_gradients = loss_and_gradients(case)
    if divided == "rows of a batch":
        monkeypatch.setattr(compressor, "TOKENS_AT_ONCE", 1)
    else:
        for module in (chunked_loss, embedding_prediction):
            monkeypatch.setattr(module, "CHUNK", 4)
    parts, part_gradients = loss_and_gradients(case)
    torch.testing.assert_close(parts, whole)
    assert any(gradient.abs().max() > 0 for gradient in whole_gradients)
    torch.testing.assert_close(part_gradients, whole_gradients, atol=1e-5, rtol=1e-4)


def test_the_gradient_of_chunks_equals_autograd_s() -> None:
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(50, 8, generator=generator)
    states = torch.randn(7, 8, generator=generator, requires_grad=True)
    tokens = torch.arange(7)

    def loss(states: Tensor, tokens: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(states @ head.T, tokens, reduction="sum")

    whole = 3 * loss(states, tokens)
    chunked = 3 * chunked_loss.sum_over_chunks(loss, states, tokens, size=3)
    torch.testing.assert_close(chunked, whole)
    expected, found = (torch.autograd.grad(value, states) for value in (whole, chunked))
    torch.testing.assert_close(found, expected)


def test_what_fills_the_padding_does_not_matter(case: Subject) -> None:
    torch.testing.assert_close(case.loss(pad_id=0), case.loss(pad_id=77), atol=1e-6, rtol=0)


def test_a_split_outside_of_the_passage_is_refused() -> None:
    for split in (0, 4):
        with pytest.raises(ValueError, match="not inside a passage of 3 tokens"):
            Batch.of([[1, 2, 3]], [split], memory_ids=[9], bos_id=None, pad_id=0)
