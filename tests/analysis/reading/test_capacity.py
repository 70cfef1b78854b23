"""How much a memory holds: against a direct computation, where it ends, and on which passages."""

import json
import math
from pathlib import Path
from statistics import mean

import pytest

import llm2comp
from llm2comp.analysis.reading import capacity as capacities
from llm2comp.analysis.reading import passages, texts, write
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


def test_what_stage_1_was_trained_on_is_left_out(
    reader: Reader, tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_recipe.parent / "texts.txt"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(source.parent)  # the lineage names the file alone
        trained, notes = passages._trained_starts(reader, str(source))
        assert notes == []
        every = [tuple(ids[:16]) for ids in reader.tokens(source.read_text().splitlines())]
        # 24 passages of 6 steps and 4 held out, of 200.
        assert len(trained) == 28
        assert trained <= set(every)
        drawn, _ = passages.draw_held_out(reader, str(source), 40, 100, 0)
        assert not trained & {tuple(ids[:16]) for ids in drawn}
    monkeypatch.chdir("/")
    trained, (note,) = passages._trained_starts(reader, str(source))
    assert trained == set()
    assert "cannot be drawn again" in note


def capacity_of(shares: dict[int, float], objective: str = "continuation") -> Capacity:
    """Return a capacity with nothing at 4 nats and the full text at 2."""
    points = [
        Point(
            length,
            8,
            {"nothing": [4.0], "memory": [4.0 - 2 * share], "full": [2.0], "last": [3.0]},
        )
        for length, share in shares.items()
    ]
    return Capacity("m", objective, "d", 0, [], points)


def test_a_memory_stops_holding_where_half_of_the_gap_is_crossed() -> None:
    held = capacity_of({16: 0.9, 32: 0.6, 128: 0.4, 256: 0.2})
    assert held.holds(8) == pytest.approx(64)  # half way between 32 and 128 in logarithms
    assert held.verdict(8).startswith("m, 8 memory tokens: stops holding at 64 tokens")
    assert capacity_of({16: 0.4, 32: 0.3}).holds(8) == 0
    assert "16 tokens already" in capacity_of({16: 0.4, 32: 0.3}).verdict(8)
    assert capacity_of({16: 0.9, 32: 0.5}).holds(8) == math.inf
    assert "up to 32 tokens" in capacity_of({16: 0.9, 32: 0.5}).verdict(8)


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
    assert sorted(file.name for file in out.iterdir()) == [
        "capacity.csv",
        "capacity.json",
        "capacity.png",
        "capacity.svg",
    ]
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
