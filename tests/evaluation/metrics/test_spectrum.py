import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import ortho_group

from llm2comp.evaluation.metrics.spectrum import RowSums, Spectrum, spectrum

Rows = npt.NDArray[np.float64]
N, D = 20_000, 24


def unit(rows: Rows) -> Rows:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def measured(rows: npt.NDArray[np.floating]) -> Spectrum:
    return spectrum(RowSums.of(np.array_split(rows, 3)))


@pytest.fixture(scope="module")
def gaussian() -> Rows:
    return unit(np.random.default_rng(0).standard_normal((N, D)))


def test_isotropic_vectors_use_every_dimension(gaussian: Rows) -> None:
    found = measured(gaussian)
    assert found.rankme == pytest.approx(D, rel=0.01)
    assert found.participation_ratio == pytest.approx(D, rel=0.01)
    assert (found.components_90, found.components_99) == (22, 24)
    assert found.mean_cosine == pytest.approx(0, abs=1e-3)
    assert found.top_share == pytest.approx(1 / D, rel=0.1)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_equal_vectors_use_one_direction(dtype: type[np.floating]) -> None:
    row = unit(np.random.default_rng(0).standard_normal((1, D)))
    found = measured(np.repeat(row, 500, 0).astype(dtype))
    assert found.rankme == pytest.approx(1, abs=1e-3)
    assert found.participation_ratio == pytest.approx(0, abs=1e-3)  # there is no variance
    assert found.components_99 <= 1
    assert found.mean_cosine == pytest.approx(1, abs=1e-6)
    assert found.top_share == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("rank", [2, 5, 24])
def test_equal_singular_values_are_counted(rank: int, dtype: type[np.floating]) -> None:
    """Plus and minus each of ``rank`` orthogonal directions, so that the mean is zero."""
    basis = ortho_group.rvs(D, random_state=0)[:rank]
    found = measured(np.concatenate([basis, -basis] * 40).astype(dtype))
    assert found.rankme == pytest.approx(rank, rel=1e-3)
    assert found.participation_ratio == pytest.approx(rank, rel=1e-3)
    assert found.components_90 == int(np.ceil(0.9 * rank))
    assert found.components_99 == rank
    assert np.count_nonzero(np.array(found.singular_values) > 1e-3) == rank
    assert found.singular_values[:rank] == pytest.approx([np.sqrt(80)] * rank, rel=1e-3)


def test_the_values_are_those_of_the_whole_matrix(gaussian: Rows) -> None:
    skewed = unit(gaussian[:5000] * np.linspace(3, 0.1, D) + 0.2)
    found = measured(skewed)
    values = np.linalg.svd(skewed, compute_uv=False)
    assert found.singular_values == pytest.approx(values.tolist(), rel=1e-8)
    variances = np.linalg.eigvalsh(np.cov(skewed.T, bias=True))
    assert found.participation_ratio == pytest.approx(
        variances.sum() ** 2 / np.square(variances).sum(), rel=1e-8
    )
    cosines = skewed @ skewed.T
    pairs = len(skewed) * (len(skewed) - 1)
    assert found.mean_cosine == pytest.approx((cosines.sum() - len(skewed)) / pairs, abs=1e-10)


def test_single_precision_and_rotation_change_nothing(gaussian: Rows) -> None:
    skewed = unit(gaussian * np.linspace(3, 0.1, D) + 0.2)
    turned = skewed @ ortho_group.rvs(D, random_state=1)
    reference = measured(skewed)
    for rows in (skewed.astype(np.float32), turned):
        found = measured(rows)
        for name in ("rankme", "participation_ratio", "mean_cosine", "top_share"):
            assert getattr(found, name) == pytest.approx(getattr(reference, name), rel=1e-5), name
        assert found.components_90 == reference.components_90
        assert found.components_99 == reference.components_99


def test_a_rogue_dimension_is_named(gaussian: Rows) -> None:
    rows = gaussian.copy()
    rows[:, 7] += 3
    found = measured(unit(rows))
    assert next(iter(found.rogue)) == 7
    assert found.rogue[7] == pytest.approx(1, abs=0.01)
