import numpy as np
import pytest

from llm2comp.evaluation.metrics import memory_tokens


def test_equal_tokens_are_redundant_and_pooling_loses_nothing() -> None:
    token = np.random.default_rng(0).standard_normal((20, 1, 12))
    found = memory_tokens.measure([np.repeat(token, 4, 1)])
    assert found.redundancy == pytest.approx(1)
    assert found.pooling_loss == pytest.approx(0)
    assert np.array(found.cosines) == pytest.approx(np.ones((4, 4)))


def test_pooling_orthogonal_tokens_keeps_one_kth() -> None:
    found = memory_tokens.measure([np.stack([3.0 * np.eye(12)[:4]] * 5)])
    assert found.redundancy == pytest.approx(0)
    assert found.pooling_loss == pytest.approx(3 / 4)
    assert np.array(found.cosines) == pytest.approx(np.eye(4))


def test_batches_precision_and_norms_of_tokens_do_not_matter() -> None:
    states = np.random.default_rng(0).standard_normal((30, 3, 12)) + 0.5
    whole = memory_tokens.measure([states])
    scaled = states * np.array([1.0, 5.0, 0.1])[:, None]
    parts = memory_tokens.measure([scaled[:7].astype(np.float32), scaled[7:].astype(np.float32)])
    assert parts.redundancy == pytest.approx(whole.redundancy, rel=1e-5)
    assert parts.pooling_loss == pytest.approx(whole.pooling_loss, rel=1e-5)
    literal = [
        a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        for text in states
        for i, a in enumerate(text)
        for j, b in enumerate(text)
        if i != j
    ]
    assert whole.redundancy == pytest.approx(np.mean(literal))


def test_a_single_token_is_redundant_and_pooling_loses_nothing() -> None:
    found = memory_tokens.measure([np.ones((3, 1, 12))])
    assert (found.redundancy, found.pooling_loss) == (1, pytest.approx(0))
