"""MNTP: the loss against LLM2Vec's formula taken literally, and which tokens are masked."""

from pathlib import Path

import pytest
import torch
from subjects import PASSAGES, make_subject

from llm2comp.training.objectives.mntp import draw_masked


def test_equals_the_literal_reference(tiny_backbone: Path) -> None:
    """The loss of a masked token at i is its negative log-probability in the output at i - 1."""
    case = make_subject(tiny_backbone, "mntp", False)
    batch = case.batch()
    torch.manual_seed(0)
    masked = draw_masked(batch.passage_mask)
    head = case.language_model().get_output_embeddings()
    underscore = case.tokenizer.convert_tokens_to_ids("_")
    losses = []
    for row, passage in enumerate(PASSAGES):
        ids = [case.compressor.bos_id, *passage]
        hidden = [underscore if masked[row, i] else token for i, token in enumerate(ids)]
        distributions = head(case.encoder_states(hidden)).log_softmax(-1)
        losses += [-distributions[i - 1, ids[i]] for i in range(len(ids)) if masked[row, i]]
    assert len(losses) == masked.sum()
    assert case.loss().item() == pytest.approx(torch.stack(losses).mean().item(), abs=1e-5)


def test_one_token_in_five_is_masked_and_never_bos_or_padding() -> None:
    torch.manual_seed(0)
    present = torch.arange(101) < torch.tensor([[101], [51]]).repeat(500, 1)
    masked = draw_masked(present)
    assert not masked[:, 0].any()
    assert not (masked & ~present).any()
    for row, tokens in ((0, 100), (1, 50)):
        rate = masked[row::2].sum().item() / (500 * tokens)
        assert rate == pytest.approx(0.2, abs=0.01)


def test_the_shortest_passage_has_a_masked_token() -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        masked = draw_masked(torch.tensor([[True, True, False], [True, True, True]]))
        assert masked[0].tolist() == [False, True, False]
        assert masked[1].any()
