"""EBAE and EBAR: the loss against a literal reference, and target sets that are easy to check."""

from pathlib import Path

import pytest
import torch
from subjects import PASSAGES, SPLITS, K, make_subject
from torch import Tensor

from llm2comp.training.objectives.embedding_prediction import (
    PREDICT,
    SUMMARIZE,
    put_around,
    token_sets,
)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_equals_the_literal_reference(tiny_backbone: Path, causal: bool) -> None:
    case = make_subject(tiny_backbone, "embedding_prediction", causal)
    head = case.language_model().get_output_embeddings()
    special = case.compressor.memory_ids

    def plain(text: str) -> list[int]:
        return case.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids

    def loss(text: list[int], prompt: str, tokens: list[int], targets: set[int]) -> Tensor:
        ids = [case.compressor.bos_id, *plain('"'), *text, *plain(prompt), *tokens]
        logits = head(case.encoder_states(ids)[-K:])
        log_probabilities = logits.max(0).values.log_softmax(-1)
        return -sum(log_probabilities[t] for t in targets) / len(targets)

    expected = torch.stack(
        [
            (
                loss(p[:a], SUMMARIZE, special[K:], set(p[:a]))
                + loss(p[:a], PREDICT, special[:K], set(p[a:]))
            )
            / 2
            for p, a in zip(PASSAGES, SPLITS, strict=True)
        ]
    ).mean()
    assert case.loss().item() == pytest.approx(expected.item(), abs=1e-5)


def test_target_sets_count_a_token_once(tiny_backbone: Path) -> None:
    """The letters of "abracadabra" are tokens, and five of them are different."""
    vocabulary = make_subject(tiny_backbone, "embedding_prediction", True).tokenizer.get_vocab()
    ids = torch.tensor([[vocabulary[letter] for letter in "abracadabra"]])
    ids, weights = token_sets(ids, torch.ones_like(ids, dtype=torch.bool))
    read = sorted(ids[weights > 0].tolist())
    assert read == sorted(vocabulary[letter] for letter in "abrcd")
    assert weights[weights > 0].tolist() == pytest.approx([1 / 5] * 5)


def test_padding_is_no_target() -> None:
    ids = torch.tensor([[7, 7, 9, 0], [0, 3, 0, 5]])
    mask = torch.tensor([[True, True, True, False], [True, True, True, True]])
    ids, weights = token_sets(ids, mask)
    sets = [set(row[w > 0].tolist()) for row, w in zip(ids, weights, strict=True)]
    assert sets == [{7, 9}, {0, 3, 5}]
    torch.testing.assert_close(weights.sum(1), torch.ones(2))


def test_prompts_stand_directly_around_each_text() -> None:
    ids = torch.tensor([[5, 6, 7], [8, 0, 0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    around, present = put_around(ids, mask, [1, 2], [3, 4])
    rows = [row[kept].tolist() for row, kept in zip(around, present, strict=True)]
    assert rows == [[1, 2, 5, 6, 7, 3, 4], [1, 2, 8, 3, 4]]
