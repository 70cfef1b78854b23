"""Short texts train with plain attention, to the same gradients."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from llm2comp.hardware import SHORT, training_attention

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a choice for processors")


def test_only_short_texts_train_with_plain_attention_and_it_is_switched_back() -> None:
    assert torch.backends.cuda.flash_sdp_enabled()
    with training_attention(SHORT):
        assert not torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()
    with training_attention(SHORT + 1):
        assert torch.backends.cuda.flash_sdp_enabled()


def test_plain_attention_has_the_gradients_of_flash_attention() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 40, 8).unbind()
    gradients = []
    for longest in (SHORT, SHORT + 1):
        leaf = query.clone().requires_grad_()
        with training_attention(longest):
            scaled_dot_product_attention(leaf, key, value, is_causal=True).square().sum().backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=0)
