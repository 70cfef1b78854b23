import builtins
import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image
from typer.testing import CliRunner

import llm2comp
from llm2comp.analysis import analyze as analysis_run
from llm2comp.analysis import figures, measure, summary
from llm2comp.analysis.report import write as report_run
from llm2comp.cli.app import app
from llm2comp.data import sample
from llm2comp.errors import UserError

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("vectors") / "spread.npy"
    np.save(file, np.random.default_rng(0).standard_normal((6000, 16)))
    return file


@pytest.mark.parametrize("missing", ["plotly.offline", "matplotlib"])
def test_what_cannot_be_drawn_is_said_before_the_work(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)  # importing it fails
    for module in (analysis_run, report_run):
        monkeypatch.setattr(module, "draw", lambda *_: pytest.fail("it draws texts"))
    monkeypatch.setattr(analysis_run, "load", lambda *_: pytest.fail("it loads an encoder"))
    work: Any = llm2comp.analyze if missing == "matplotlib" else llm2comp.report
    with pytest.raises(UserError, match=rf"needs? {missing.split('.')[0]}: pip install"):
        work(["minilm"], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_json_files_and_figures(
    encoder: Path, vectors: Path, tmp_path: Path, sentences: list[str]
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(sentences) + "\n")
    models = [str(encoder), str(encoder), str(vectors)]
    command = ["analyze", *models, "--data", str(texts), "--out", str(tmp_path / "out")]
    result = RUNNER.invoke(app, command)
    assert result.exit_code == 0, result.output
    found = {file.name: json.loads(file.read_text()) for file in (tmp_path / "out").glob("*.json")}
    assert {name: one["model"] for name, one in found.items()} == {
        "memory.json": str(encoder),
        "memory~2.json": str(encoder),
        "spread.npy.json": str(vectors),
    }
    for name in ("spectrum", "memory"):
        with Image.open(tmp_path / "out" / f"{name}.png") as image:
            assert min(image.size) > 300
            assert len(set(image.convert("L").getdata())) > 10  # something is drawn
    spectrum = ET.parse(tmp_path / "out" / "spectrum.svg")
    texts_drawn = " ".join(spectrum.getroot().itertext())
    assert "spread.npy (RankMe 16)" in texts_drawn
    maps = ET.parse(tmp_path / "out" / "memory.svg")
    drawn = list(maps.getroot().itertext())
    assert drawn.count("memory") == 2  # the encoder's folder, as a title
    assert drawn.count("1.00") == 2 * 4
    assert f"all 8 texts of {texts}" in " ".join(result.stdout.split())
    assert "sample of 5,000 of 6,000 embeddings" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("models", "names"),
    [
        (["cells/ctkd/1-pretext", "cells/nll/1-pretext"], ["ctkd", "nll"]),
        (["/runs/first/1-pretext", "/runs/first/model", "x"], ["1-pretext", "model", "x"]),
        (["a/model", "b/model", "owner/name"], ["a/model", "b/model", "name"]),
        (["model", "a/model", "b/a/model"], ["model", "a/model", "b/a/model"]),
        (["runs/first/model"], ["model"]),
        (["a/b", "a/b"], ["b", "b"]),
    ],
)
def test_short_names_tell_the_models_apart(models: list[str], names: list[str]) -> None:
    assert summary.short_names(models) == names


def test_the_same_analysis_gives_the_same_figure(vectors: Path, tmp_path: Path) -> None:
    found = [measure.analyze_embeddings(vectors, "spread.npy")]
    first, second = (figures.spectrum(found, tmp_path / name) for name in ("a", "b"))
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]


def test_figures_without_matplotlib_are_refused(
    vectors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = measure.analyze_embeddings(vectors, "spread.npy")
    imported = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'llm2comp\[report\]'"):
        figures.spectrum([found], tmp_path / "x")


def test_a_dominant_dimension_is_noted(tmp_path: Path, sentences: list[str]) -> None:
    assert sample.Sample("s", sentences, [], 8).note == "all 8 texts of s"
    rows = np.random.default_rng(0).standard_normal((500, 16))
    rows[:, 5] += 9
    np.save(tmp_path / "v.npy", rows)
    (note,) = summary.notes([measure.analyze_embeddings(tmp_path / "v.npy", "v")])[1:]
    assert "dimension 5 alone makes 1" in note or "dimension 5 alone makes 9" in note


def test_labels_that_would_touch_are_left_out() -> None:
    numbers = [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]
    assert figures._labels(numbers, 6.0) == [str(number) for number in numbers]
    shown = [label for label in figures._labels(numbers, 3.8) if label]
    assert shown == ["16", "32", "64", "128", "256", "512"]
    assert figures._labels([1000], 3.8) == ["1,000"]


def test_small_numbers_are_labelled_as_they_are() -> None:
    assert figures._labels([0.001, 0.25, 4, 1024], 6.0) == ["0.001", "0.25", "4", "1,024"]


def test_one_legend_holds_for_all_panels(tmp_path: Path) -> None:
    """A line that the first panel lacks is in it, and a name has one colour and one dash."""
    a, b, c = ([(1, y, 0.1), (2, y, 0.1)] for y in (0.1, 0.2, 0.3))
    panels = {"left": {"a": a, "b": b}, "right": {"c": c, "b": b}}
    drawn: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "_save", lambda figure, _: drawn.append(figure) or [])
        figures.lines(panels, tmp_path / "figure", "k", "share")
    (figure,) = drawn
    looks = [
        {name: (line.get_color(), line.get_linestyle()) for name, line in _lines_of(axes).items()}
        for axes in figure.axes
    ]
    assert looks[0]["b"] == looks[1]["b"]
    assert len({*looks[0].values(), *looks[1].values()}) == 3
    (legend,) = figure.legends
    shown = {
        text.get_text(): to_hex(handle.get_color()[0]).upper()
        for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True)
    }
    assert shown == {name: colour for name, (colour, _) in (looks[0] | looks[1]).items()}


def _lines_of(axes: Any) -> dict[str, Any]:
    handles, names = axes.get_legend_handles_labels()
    return {name: handle.lines[0] for name, handle in zip(names, handles, strict=True)}


def test_error_bars_reach_as_far_as_an_interval(tmp_path: Path) -> None:
    """An interval need not reach as far below a point as above it."""
    panels = {"m": {"line": [(1, 0.5, (0.1, 0.3)), (2, 0.6, (0.2, 0.1))]}}
    drawn: list[list[float]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "_save", lambda figure, _: drawn.extend(_ends_of_bars(figure)) or [])
        figures.lines(panels, tmp_path / "figure", "k", "share", level=0.5)
    assert drawn == [pytest.approx([0.4, 0.8]), pytest.approx([0.4, 0.7])]


def _ends_of_bars(figure: Any) -> list[list[float]]:
    (bars,) = figure.axes[0].collections
    return [list(segment[:, 1]) for segment in bars.get_segments()]
