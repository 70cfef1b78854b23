"""How much a memory holds: against a direct computation, where it ends, and on which passages."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean

import numpy as np
import pytest
from scipy.stats import bootstrap

import llm2comp
from llm2comp.analysis.reading import capacity as capacities
from llm2comp.analysis.reading import curves, gap, passages, texts, write
from llm2comp.analysis.reading.capacity import CONTINUATION, Capacity, Point
from llm2comp.errors import UserError
from llm2comp.inference.reading.reader import Reader
from llm2comp.recipe import load_recipe
from llm2comp.training import pipeline

LENGTHS = [4, 12]


@pytest.fixture(scope="module")
def reader(
    tiny_recipe: Path, tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory
) -> Reader:
    recipe = load_recipe(tiny_recipe, ["pretext.steps=6", "pretext.eval_passages=4"])
    recipe = recipe.model_copy(update={"stages": recipe.stages[:1]})
    out = tmp_path_factory.mktemp("runs") / "tiny"
    pipeline.train(recipe, out)
    return Reader.open(str(out / "1-pretext"), "float32", tiny_backbone)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, sentences: list[str]) -> Path:
    """Long passages that differ from their first word on."""
    file = tmp_path_factory.mktemp("data") / "long.txt"
    lines = [" ".join([f"{row} rivers:", *sentences[row:], *sentences[:row]]) for row in range(8)]
    file.write_text("\n".join(lines) + "\n")
    return file


def test_the_losses_are_those_of_a_direct_computation(reader: Reader, data: Path) -> None:
    advanced: list[int] = []
    measured = capacities.measure(
        reader, str(data), LENGTHS, [2, 4], 3, 0, lambda: advanced.append(1)
    )
    assert len(advanced) == 3
    drawn, _ = passages.draw_held_out(reader, str(data), LENGTHS[-1] + CONTINUATION, 3, 0)
    for length in LENGTHS:
        compressed = [ids[-CONTINUATION - length : -CONTINUATION] for ids in drawn]
        direct = texts.measure(reader, compressed, [ids[-CONTINUATION:] for ids in drawn])
        (point,) = (point for point in measured.of(4) if point.length == length)
        for given in capacities.CURVES:
            wanted = [mean(losses[given]) for losses, _ in direct]
            assert point.losses[given] == pytest.approx(wanted, abs=2e-5), given
    fewer, whole = measured.of(2), measured.of(4)
    assert [point.losses["full"] for point in fewer] == [point.losses["full"] for point in whole]
    assert fewer[0].losses["memory"] != whole[0].losses["memory"]


def test_passages_are_the_same_for_a_seed_and_differ_between_seeds(
    reader: Reader, data: Path
) -> None:
    first, _ = passages.draw_held_out(reader, str(data), 40, 3, 0)
    assert passages.draw_held_out(reader, str(data), 40, 3, 0)[0] == first
    assert passages.draw_held_out(reader, str(data), 40, 3, 1)[0] != first
    assert all(len(ids) == 40 for ids in first)


def test_what_stage_1_was_trained_on_is_left_out_or_told(
    reader: Reader, tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_recipe.parent / "texts.txt"
    stage = reader.lineage.stages[0]
    monkeypatch.chdir(source.parent)  # the lineage names the file alone

    # 24 passages of 6 steps and 4 held out, of 200: the path that gave their order is not recorded.
    trained, (note,) = passages._trained_starts(reader, source.name)
    assert trained == set()
    assert "which passages it took is not recorded" in note
    _, notes = passages.draw_held_out(reader, source.name, 40, 3, 0)
    assert notes == [note]

    with monkeypatch.context() as patch:
        patch.setattr(stage, "steps", 50)  # so all 200 were used
        trained, notes = passages._trained_starts(reader, source.name)
        assert notes == []
        every = reader.tokens(source.read_text().splitlines())
        assert trained == {tuple(ids[:16]) for ids in every}
        with pytest.raises(UserError, match="0 texts that stage 1 was not trained on"):
            passages.draw_held_out(reader, source.name, 40, 3, 0)

    monkeypatch.chdir("/")
    trained, (note,) = passages._trained_starts(reader, str(source))
    assert trained == set()
    assert "cannot be drawn again" in note


def capacity_of(
    shares: dict[int, float],
    objective: str = "continuation",
    spread: float = 0.0,
    ks: tuple[int, ...] = (8,),
) -> Capacity:
    """Return a capacity of three passages with nothing at 4 nats and the full text at 2."""
    points = [
        Point(length, k, losses_of([share - spread, share, share + spread]))
        for k in ks
        for length, share in shares.items()
    ]
    return Capacity("m", objective, "d", 0, [], points)


def losses_of(shares: list[float]) -> dict[str, list[float]]:
    """Return losses of passages, one for each share of the gap that its memory closes."""
    many = len(shares)
    memory = [4.0 - 2 * share for share in shares]
    return {"nothing": [4.0] * many, "memory": memory, "full": [2.0] * many, "last": [3.0] * many}


def test_a_memory_stops_holding_where_half_of_the_gap_is_crossed() -> None:
    held = capacity_of({16: 0.9, 32: 0.6, 128: 0.4, 256: 0.2})
    # Half way between 32 and 128 in logarithms. All passages are the same, so it is certain.
    assert held.holds(8) == pytest.approx((64, 64, 64))
    assert held.verdict(8) == (
        "m, 8 memory tokens: closes less than half of the gap from 64 tokens on (95% interval: 64)"
    )
    assert capacity_of({16: 0.4, 32: 0.3}).holds(8) == (0, 0, 0)
    assert (
        capacity_of({16: 0.4, 32: 0.3})
        .verdict(8)
        .endswith("at 16 tokens already (95% interval: less than 16)")
    )
    assert capacity_of({16: 0.9, 32: 0.5}).holds(8) == (math.inf,) * 3
    assert "up to 32 tokens (95% interval: more than 32)" in (
        capacity_of({16: 0.9, 32: 0.5}).verdict(8)
    )


def test_the_first_length_that_is_not_held_counts() -> None:
    """A later length that is held again does not make it up."""
    assert capacity_of({16: 0.9, 32: 0.4, 64: 0.9}).holds(8) == pytest.approx(
        capacity_of({16: 0.9, 32: 0.4}).holds(8)
    )


def test_where_a_memory_stops_has_the_interval_of_a_bootstrap_over_passages() -> None:
    end = capacity_of({16: 0.9, 32: 0.6, 128: 0.4, 256: 0.2}, spread=0.1).holds(8)
    assert end is not None
    assert end.value == pytest.approx(64)
    # A resample of one passage three times, 1 in 27, has the shares of that passage.
    assert end.low == pytest.approx(32)
    assert end.high == pytest.approx(128)


def test_a_gap_that_may_be_chance_has_no_share() -> None:
    """A memory that is 0.04 nats better, in a gap of 0.01 nats, would close 400 %."""
    nothing, full = [4.0, 5.0, 3.0], [4.2, 4.7, 3.07]
    losses = {"nothing": nothing, "memory": [3.96, 4.96, 2.96], "full": full, "last": full}
    point = Point(16, 8, losses)
    assert mean(nothing) - mean(full) == pytest.approx(0.01)
    assert point.gap_closed is None
    capacity = Capacity("m", "continuation", "d", 0, [], [point])
    assert capacity.holds(8) is None
    assert capacity.verdict(8).endswith(
        "the gap from nothing to the full text is too small to tell"
    )
    (_, row) = write.cells([capacity])
    assert "too small to tell" in row
    assert not [cell for cell in row if "%" in cell]
    assert write.as_dict(capacity)["holds"] == {8: None}
    # One passage cannot tell either.
    one = Point(16, 8, {given: rows[:1] for given, rows in losses.items()} | {"full": [1.0]})
    assert one.gap_closed is None


def test_a_length_whose_gap_is_too_small_is_left_out() -> None:
    held = capacity_of({16: 0.9, 32: 0.6, 128: 0.4})
    small = {"nothing": [4.0, 4.0], "memory": [9.0, 9.0], "full": [3.9, 4.2], "last": [4.0, 4.0]}
    with_small = replace(held, points=[Point(8, 8, small), *held.points])
    assert with_small.holds(8) == held.holds(8)
    assert with_small.verdict(8) == held.verdict(8)
    ((_, lines),) = curves.shares_over_length([with_small]).items()
    assert [x for x, *_ in lines["k = 8"]] == [16, 32, 128]


def test_curves_over_k_are_of_one_encoder_or_of_one_for_each_k() -> None:
    lengths = {16: 0.9, 32: 0.7, 64: 0.6, 128: 0.5, 256: 0.4}
    ((title, lines),) = curves.shares_over_k([capacity_of(lengths, ks=(4, 8))]).items()
    assert title == "m"
    assert list(lines) == ["16 tokens", "32 tokens", "128 tokens", "256 tokens"]
    xs, ys, _ = zip(*lines["128 tokens"], strict=True)
    assert xs == (4, 8)
    assert ys == pytest.approx((0.5, 0.5))
    each = [capacity_of({16: share}, ks=(k,)) for k, share in ((8, 0.8), (2, 0.2))]
    ((title, lines),) = curves.shares_over_k(each).items()
    assert title == curves.ONE_EACH
    assert [x for x, *_ in lines["16 tokens"]] == [2, 8]
    # One k, or two encoders of the same k, are no curve over k.
    assert curves.shares_over_k(each[:1]) == {}
    assert curves.shares_over_k([each[0], each[0]]) == {}


def test_the_interval_of_a_share_is_that_of_scipy() -> None:
    numbers = np.random.default_rng(0)
    nothing = numbers.normal(4, 1, 40)
    memory, full = nothing - numbers.normal(0.5, 0.3, 40), nothing - numbers.normal(1, 0.3, 40)
    share = gap.gap_closed(list(nothing), list(memory), list(full))
    assert share is not None
    assert share.value == pytest.approx((nothing - memory).mean() / (nothing - full).mean())

    def of_means(*losses: np.ndarray, axis: int) -> np.ndarray:
        first, second, third = (one.mean(axis) for one in losses)
        return (first - second) / (first - third)

    data = (nothing, memory, full)
    wanted = bootstrap(data, of_means, paired=True, method="percentile", rng=1).confidence_interval
    assert (share.low, share.high) == pytest.approx(tuple(wanted), abs=0.03)
    assert gap.in_words(share) == f"{share.value:.0%} ({share.low:.0%} to {share.high:.0%})"


def test_a_folder_that_was_written_is_read_again(tmp_path: Path) -> None:
    held = capacity_of({16: 0.9, 32: 0.4})
    (tmp_path / "capacity.json").write_text(json.dumps([write.as_dict(held)]))
    assert write.from_folder(tmp_path) == [held]
    for content, said in (
        (
            "[{}]",
            r"capacity\.json is not what `llm2comp capacity` writes: 0\.model: is missing",
        ),
        ("{", r"capacity\.json is not what"),
        (
            json.dumps([asdict(Capacity("m", "o", "d", 0, [], [Point(16, 8, {"full": [1.0]})]))]),
            "losses of 16 tokens are missing",
        ),
    ):
        (tmp_path / "capacity.json").write_text(content)
        with pytest.raises(UserError, match=said):
            write.from_folder(tmp_path)
    with pytest.raises(UserError, match="No such file.*; `llm2comp capacity MODEL --out"):
        write.from_folder(tmp_path / "absent")


def test_a_memory_is_worth_the_last_tokens_that_predict_as_well() -> None:
    def point(length: int, memory: float, full: float) -> Point:
        losses = {"nothing": [5.0], "last": [4.0], "memory": [memory], "full": [full]}
        return Point(length, 8, losses)

    points = [point(16, 3.0, 3.0), point(64, 2.5, 2.0), point(256, 4.5, 1.0)]
    held = Capacity("m", "continuation", "d", 0, [], points)
    assert held.worth(points[0]) == pytest.approx(16)
    assert held.worth(points[1]) == pytest.approx(32)
    assert held.worth(points[2]) is None  # less than the last 8 tokens
    again = Capacity("m", "reconstruction", "d", 0, [], points)
    assert again.worth(points[1]) is None


def test_errors_are_standard_errors_over_passages() -> None:
    point = Point(16, 8, {"memory": [1.0, 2.0, 3.0, 4.0]})
    assert point.loss("memory") == 2.5
    assert point.error("memory") == pytest.approx(1.2909944 / 2)


def test_files_and_table(
    reader: Reader, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(Reader, "open", classmethod(lambda *_: reader))
    out = tmp_path / "out"
    (measured,) = llm2comp.capacity("m", out, data=str(data), lengths=LENGTHS, passages=2)
    assert {"capacity.csv", "capacity.json", "capacity.png", "capacity.svg"} <= {
        file.name for file in out.iterdir()
    }
    (written,) = json.loads((out / "capacity.json").read_text())
    assert written["points"][0]["losses"] == measured.points[0].losses
    assert written["holds"].keys() == {"4"}
    lines = (out / "capacity.csv").read_text().splitlines()
    assert lines[0].startswith("model,k,tokens,passages,nothing,last,memory,full")
    assert float(lines[1].split(",")[6]) == measured.points[0].loss("memory")
    heading, *rows = write.cells([measured])
    assert heading[:3] == ["model", "k", "tokens"]
    assert [row[2] for row in rows] == ["4", "12"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"passages": 9}, "8 texts that stage 1 was not trained on have 44 tokens or more, and 9"),
        ({"lengths": [600]}, "can be measured up to 512 tokens"),
        ({"k": [5]}, "has 4 memory tokens, and k is 5"),
        ({"lengths": [0]}, "must be at least 1"),
        ({"data": "absent.txt"}, r"absent\.txt"),
    ],
)
def test_a_mistake_is_named(
    options: dict[str, object],
    said: str,
    reader: Reader,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Reader, "open", classmethod(lambda *_: reader))
    settings = {"data": str(data), "lengths": LENGTHS, "passages": 2} | options
    with pytest.raises(UserError, match=said):
        llm2comp.capacity("m", **settings)  # type: ignore[arg-type]


def test_no_model_is_a_mistake() -> None:
    with pytest.raises(UserError, match="name an encoder"):
        llm2comp.capacity([])
