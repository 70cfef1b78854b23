"""`read` and `capacity` on the command line."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import llm2comp
from llm2comp.cli.app import app
from llm2comp.recipe import load_recipe
from llm2comp.training import pipeline

RUNNER = CliRunner()
TEXT = "The river rises in the mountains and reaches the sea after two hundred miles."


@pytest.fixture(scope="module")
def folder(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = load_recipe(tiny_recipe, ["pretext.steps=0"])
    recipe = recipe.model_copy(update={"stages": recipe.stages[:1]})
    out = tmp_path_factory.mktemp("runs") / "tiny"
    pipeline.train(recipe, out)
    return out / "1-pretext"


@pytest.fixture(scope="module")
def options(folder: Path, tiny_backbone: Path) -> list[str]:
    return [str(folder), "--backbone", str(tiny_backbone), "--dtype", "float32"]


def test_read_shows_what_is_said_and_the_table(
    options: list[str], folder: Path, tiny_backbone: Path
) -> None:
    model, *rest = options
    result = RUNNER.invoke(app, ["read", model, TEXT, *rest, "--max-new-tokens", "5"])
    assert result.exit_code == 0, result.output
    read = llm2comp.read(folder, TEXT, max_new_tokens=5, backbone=tiny_backbone, dtype="float32")
    for words in read.texts[0].said.values():
        assert words in result.stdout
    for given in ("memory", "full text", "nothing", "memory set to zero"):
        assert re.search(rf"^{given} +\d", result.stdout, re.MULTILINE)
    assert f"{read.loss('memory'):.3f}" in result.stdout
    assert "a memory token replaces" in result.stdout


def test_read_as_json(options: list[str]) -> None:
    model, *rest = options
    result = RUNNER.invoke(app, ["read", model, TEXT, *rest, "--max-new-tokens", "5", "--json"])
    assert result.exit_code == 0, result.output
    written = json.loads(result.stdout)
    (text,) = written["texts"]
    assert text["text"] == TEXT
    assert len(text["losses"]["memory"]) == len(text["predicted"])
    assert written["k"] == 4


def test_what_is_no_file_is_a_text(options: list[str]) -> None:
    model, *rest = options
    result = RUNNER.invoke(app, ["read", model, "absent words.txt", *rest, "--max-new-tokens", "0"])
    assert result.exit_code == 0
    assert "After" not in result.stdout


def test_capacity_shows_a_table(options: list[str], tmp_path: Path) -> None:
    file = tmp_path / "long.txt"
    file.write_text("\n".join(f"{row} {TEXT} {TEXT} {TEXT}" for row in range(3)) + "\n")
    model, *rest = options
    arguments = ["capacity", model, *rest, "--data", str(file), "--passages", "2"]
    result = RUNNER.invoke(app, [*arguments, "--length", "4", "--length", "8"])
    assert result.exit_code == 0, result.output
    assert "gap closed" in result.stdout
    assert "4 memory tokens:" in result.stdout
    as_json = RUNNER.invoke(app, [*arguments, "--length", "4", "--k", "2", "--json"])
    (written,) = json.loads(as_json.stdout)
    assert [point["k"] for point in written["points"]] == [2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["read", "absent", "a text", "--top-p", "0"], "top_p is 0"),
        (["read", "absent", " "], "no text to read"),
        (["read", "absent", "misspelt.txt"], "misspelt.txt"),
        (["read", "minilm", "a text", "--temperature", "-1"], "temperature"),
        (["capacity", "absent", "--passages", "0"], "passages"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], said: str) -> None:
    result = RUNNER.invoke(app, arguments)
    assert result.exit_code == 2
    assert re.search(said, result.stderr)
    assert result.stderr.startswith("llm2comp: ")
    assert result.stderr.count("\n") == 1


def test_without_the_backbone_the_remedy_is_named(folder: Path) -> None:
    result = RUNNER.invoke(app, ["read", str(folder), TEXT])
    assert result.exit_code == 2
    assert "tiny-llama, which cannot be had" in result.stderr
    assert result.stderr.strip().endswith("--backbone")
