import builtins
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from llm2comp.analysis import analyze, figures, sample, summary
from llm2comp.cli import app
from llm2comp.errors import UserError

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("vectors") / "spread.npy"
    np.save(file, np.random.default_rng(0).standard_normal((6000, 16)))
    return file


def test_the_command_leaves_numbers_and_figures(
    encoder: Path, vectors: Path, tmp_path: Path, sentences: list[str]
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(sentences) + "\n")
    models = [str(encoder), str(encoder), str(vectors)]
    command = ["analyze", *models, "--data", str(texts), "--out", str(tmp_path / "out")]
    result = RUNNER.invoke(app, command)
    assert result.exit_code == 0, result.output
    stem = summary.stems([analyze.analyze_vectors(vectors)])[0]
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert f"{stem}.json" in names
    assert sum(name.endswith(".json") for name in names) == 3
    assert sum(name.endswith("-memory.png") for name in names) == 2
    for file in (tmp_path / "out").glob("*.png"):
        with Image.open(file) as image:
            assert min(image.size) > 500
            assert len(set(image.convert("L").getdata())) > 10  # something is drawn
    spectrum = ET.parse(tmp_path / "out" / "spectrum.svg")
    texts_drawn = " ".join(spectrum.getroot().itertext())
    assert "spread.npy (RankMe 16)" in texts_drawn
    assert f"all 8 texts of {texts}" in " ".join(result.stdout.split())
    assert "of 5,000 of its 6,000 vectors" in " ".join(result.stdout.split())


def test_the_same_analysis_gives_the_same_figure(vectors: Path, tmp_path: Path) -> None:
    found = [analyze.analyze_vectors(vectors)]
    first, second = (figures.spectrum(found, tmp_path / name) for name in ("a", "b"))
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]


def test_what_is_missing_is_said(
    vectors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = analyze.analyze_vectors(vectors)
    with pytest.raises(UserError, match="has no memory tokens"):
        figures.memory(found, tmp_path / "x")
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
    (note,) = summary.notes([analyze.analyze_vectors(tmp_path / "v.npy")])[1:]
    assert "dimension 5 alone makes 1" in note or "dimension 5 alone makes 9" in note
