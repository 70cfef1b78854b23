"""Shuffles keep all rows, mixtures keep their shares, and both depend on the seed only."""

import itertools
import random

import pytest

from llm2comp.data import mixture
from llm2comp.recipe_parts import DataSource


@pytest.mark.parametrize("window", [1, 7, 100, 1000])
def test_a_shuffle_keeps_each_row_once(window: int) -> None:
    rows = list(range(100))
    shuffled = list(mixture.shuffle(rows, "0", window))
    assert sorted(shuffled) == rows
    assert shuffled == list(mixture.shuffle(rows, "0", window))
    if window > 1:
        assert shuffled != list(mixture.shuffle(rows, "1", window))


def test_every_prefix_of_a_mixture_has_the_weights() -> None:
    weights = [3.0, 1.0, 0.5]
    streams = [itertools.repeat(i) for i in range(3)]
    drawn = [place for place, _ in mixture.interleave(streams, weights, 450)]
    assert [drawn.count(i) for i in range(3)] == [300, 100, 50]
    for length in range(1, 450):
        for i, weight in enumerate(weights):
            assert abs(drawn[:length].count(i) - length * weight / 4.5) < 1.5


def test_a_stream_that_ends_leaves_its_share_to_the_others() -> None:
    streams = [iter(range(10)), iter(range(1000)), iter(range(1000))]
    drawn = [place for place, _ in mixture.interleave(streams, [1, 1, 2], 310)]
    assert [drawn.count(i) for i in range(3)] == [10, 100, 200]
    assert list(mixture.interleave([iter([1]), iter([2])], [1, 1], 9)) == [(0, 1), (1, 2)]


def test_any_name_can_seed_a_shuffle_and_the_order_of_a_plain_one_stays() -> None:
    assert list(mixture.shuffle(range(6), "0/texts.txt")) == list(expected("0/texts.txt"))
    assert sorted(mixture.shuffle(range(6), "0/\udcff.txt")) == list(range(6))


def expected(seed: str) -> list[int]:
    """The order that a string gives as the seed of `random.Random`."""
    rows = list(range(6))
    random.Random(seed).shuffle(rows)
    return rows


def test_a_source_that_runs_short_is_told_with_what_each_gave(
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = [DataSource(source="dev.csv", weight=3), DataSource(source="mp.csv")]

    def drawn(count: int) -> list[int]:
        streams = [iter(range(40)), iter(range(40))]
        places = [place for place, _ in mixture.draw(data, streams, "pairs", count)]
        return [places.count(0), places.count(1)]

    assert drawn(52) == [39, 13]
    assert caplog.messages == []
    assert drawn(64) == [40, 24]
    assert caplog.messages == [
        "pairs: the weights are not kept, because dev.csv had too few: dev.csv gave 40 of 48 asked "
        "for, mp.csv gave 24 of 16 asked for"
    ]
    caplog.clear()
    assert drawn(400) == [40, 40]
    assert caplog.messages == [
        "pairs: the weights are not kept, because dev.csv and mp.csv had too few: dev.csv gave 40 "
        "of 300 asked for, mp.csv gave 40 of 100 asked for"
    ]


def test_one_source_that_runs_short_has_no_weight_to_keep(caplog: pytest.LogCaptureFixture) -> None:
    drawn = mixture.draw([DataSource(source="dev.csv")], [iter("ab")], "pairs", 9)
    assert list(drawn) == [(0, "a"), (0, "b")]
    assert caplog.messages == []
