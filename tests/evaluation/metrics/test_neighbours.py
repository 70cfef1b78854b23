import numpy as np
import pytest

from llm2comp.evaluation.metrics import neighbours


def unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return unit(np.random.default_rng(0).standard_normal((1500, 16)))


def test_alignment_is_0_for_equal_and_4_for_opposite_embeddings(rows: np.ndarray) -> None:
    assert neighbours.alignment(rows, rows) == 0
    assert neighbours.alignment(rows, -rows) == pytest.approx(4)
    assert neighbours.alignment(rows[:-1], rows[1:]) == pytest.approx(2, abs=0.05)


def test_uniformity_equals_a_literal_reference(rows: np.ndarray) -> None:
    some = rows[:60]
    pairs = [
        np.exp(-2 * np.square(some[i] - some[j]).sum())
        for i in range(60)
        for j in range(60)
        if i != j
    ]
    assert neighbours.uniformity(some) == pytest.approx(np.log(np.mean(pairs)))
    assert neighbours.uniformity(np.repeat(some[:1], 50, 0)) == pytest.approx(0, abs=1e-9)
    assert neighbours.uniformity(rows) < neighbours.uniformity(unit(rows + 0.5)) < -0.1


def test_hubness_equals_a_literal_reference(rows: np.ndarray) -> None:
    some = rows[:200]
    counts = np.zeros(200)
    for place, row in enumerate(some):
        order = [i for i in np.argsort(-(some @ row)) if i != place]
        counts[order[:10]] += 1
    centred = counts - counts.mean()
    skewness = (centred**3).mean() / (centred**2).mean() ** 1.5
    assert neighbours.hubness(some) == pytest.approx(skewness, rel=1e-6)


def test_hubs_raise_the_hubness(rows: np.ndarray) -> None:
    """Points on a circle are neighbours alike; points near the middle of many others are hubs."""
    angles = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], 1)
    assert abs(neighbours.hubness(circle)) < 0.5
    wide = np.random.default_rng(0).standard_normal((400, 64))
    hubs = unit(np.concatenate([wide, wide.mean(0, keepdims=True) + 0.01 * wide[:4]]) + 0.3)
    assert neighbours.hubness(hubs) > 1 > neighbours.hubness(rows[:400])
