"""MNTP: the loss against LLM2Vec's formula taken literally, and which tokens are masked."""

from pathlib import Path

import pytest
import torch
from subjects import PASSAGES, make_subject, stage
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from llm2comp.errors import UserError
from llm2comp.training.objectives.mntp import MaskedNextTokenPrediction


def objective(tokenizer: PreTrainedTokenizerFast, **settings: object) -> MaskedNextTokenPrediction:
    return MaskedNextTokenPrediction.of(tokenizer, stage("mntp", **settings))


def words(vocabulary: int, *more: str, **special: str) -> PreTrainedTokenizerFast:
    """A tokenizer of this many tokens `w0 w1 …`, with some more."""
    tokens = [*(f"w{i}" for i in range(vocabulary)), *more]
    backend = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


@pytest.mark.parametrize("bos", [True, False], ids=["BOS", "no BOS"])
@pytest.mark.parametrize("masking", ["bert", "all"])
def test_equals_the_literal_reference(tiny_backbone: Path, masking: str, bos: bool) -> None:
    """The loss of a drawn token at i is its negative log-probability in the output at i - 1."""
    case = make_subject(tiny_backbone, "mntp", False, masking=masking, mask_probability=0.6)
    assert isinstance(case.objective, MaskedNextTokenPrediction)
    prefix = [case.compressor.bos_id] if bos else []
    case.compressor.bos_id = prefix[0] if bos else None
    batch = case.batch()
    fixed = ~batch.passage_mask
    fixed[:, : len(prefix)] = True
    torch.manual_seed(0)
    masked, drawn = case.objective.mask(batch.passage_ids, fixed)
    head = case.language_model().get_output_embeddings()
    losses = []
    for row, passage in enumerate(PASSAGES):
        ids = [*prefix, *passage]
        distributions = head(case.encoder_states(masked[row, : len(ids)].tolist())).log_softmax(-1)
        losses += [-distributions[i - 1, ids[i]] for i in range(1, len(ids)) if drawn[row, i]]
    assert drawn[:, 0].any() != bos  # without BOS the first token is masked, and not predicted
    assert case.loss().item() == pytest.approx(torch.stack(losses).mean().item(), abs=1e-5)


def shares(masking: str, probability: float) -> dict[str, float]:
    """How many of 100,000 tokens are drawn, and what becomes of those that are."""
    tokenizer = words(1000, "_")
    masks = objective(tokenizer, masking=masking, mask_probability=probability)
    ids = torch.randint(1000, (200, 501), generator=torch.Generator().manual_seed(0))
    fixed = torch.zeros_like(ids, dtype=torch.bool)
    fixed[:, 0] = True  # BOS
    fixed[:100, 401:] = True  # padding
    before = ids.clone()
    torch.manual_seed(0)
    masked, drawn = masks.mask(ids, fixed)
    torch.testing.assert_close(ids, before)
    assert not (drawn & fixed).any()
    torch.testing.assert_close(masked[~drawn], ids[~drawn])

    def share(of: Tensor) -> float:
        return of[drawn].float().mean().item()

    return {
        "drawn": drawn.sum().item() / (~fixed).sum().item(),
        "masked": share(masked == 1000),
        "kept": share(masked == ids),
        "other": share((masked != 1000) & (masked != ids)),
    }


def test_by_default_a_drawn_token_becomes_what_llm2vec_s_llama_recipe_makes_of_it() -> None:
    expected = {"drawn": 0.2, "masked": 0.8, "kept": 0.1, "other": 0.1}
    assert recipe_defaults() == ("bert", 0.2)
    assert shares("bert", 0.2) == pytest.approx(expected, abs=0.01)


def test_all_drawn_tokens_are_masked_as_in_llm2vec_s_mistral_recipe() -> None:
    expected = {"drawn": 0.8, "masked": 1.0, "kept": 0.0, "other": 0.0}
    assert shares("all", 0.8) == pytest.approx(expected, abs=0.01)


def recipe_defaults() -> tuple[str, float]:
    defaults = stage("mntp")
    return defaults.masking, defaults.mask_probability


def test_the_mask_token_is_the_tokenizer_s_own_or_the_blank_or_eos() -> None:
    for tokenizer, expected in (
        (words(3, "_", "[M]", mask_token="[M]", eos_token="w2"), 4),
        (words(3, "_", eos_token="w2"), 3),
        (words(3, eos_token="w2"), 2),
    ):
        own = tokenizer.mask_token
        masks = objective(tokenizer, masking="all", mask_probability=1.0)
        masked, _ = masks.mask(torch.tensor([[0, 1]]), torch.tensor([[False, False]]))
        assert masked.tolist() == [[expected, expected]]
        assert tokenizer.mask_token == own, "the encoder's tokenizer is not changed"
    with pytest.raises(UserError, match="needs a mask token"):
        objective(words(3))


def test_where_no_token_is_drawn_the_loss_is_zero(tiny_backbone: Path) -> None:
    case = make_subject(tiny_backbone, "mntp", False, mask_probability=1e-9)
    assert case.loss().item() == 0
