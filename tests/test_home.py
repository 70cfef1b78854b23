"""`~` at the beginning of an output is the home folder: a shell leaves it in `--out=~/x`."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import llm2comp
from llm2comp.cli.app import app
from llm2comp.evaluation import baselines
from llm2comp.model import released
from llm2comp.model.lineage import Lineage
from llm2comp.retrieval.index import stored_name
from llm2comp.serving.loading import named_indexes
from llm2comp.training import pipeline
from llm2comp.utils.files import user_path

RUNNER = CliRunner()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder that is not the current one, with five embeddings in `rows.npy`."""
    folder = tmp_path / "home"
    for part in (folder, tmp_path / "here"):
        part.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(tmp_path / "here")
    np.save(folder / "rows.npy", np.random.default_rng(0).standard_normal((5, 4)))
    return folder


def here() -> list[Path]:
    return list(Path.cwd().iterdir())


def test_a_path_of_the_user(home: Path) -> None:
    assert user_path("~/a/b") == user_path(Path("~/a/b")) == home / "a" / "b"
    for other in ("a/~", "/a/~/b", "-", "~nobody-of-this-name/a"):  # as in a shell
        assert user_path(other) == Path(other)


def test_embeddings_are_written_to_the_home_folder(
    home: Path, tiny_backbone: Path, sentences: list[str]
) -> None:
    (home / "texts.txt").write_text("".join(f"{text}\n" for text in sentences))
    model = baselines.build("last-token", tiny_backbone)
    assert llm2comp.encode_file(model, home / "texts.txt", "~/v.npy") == len(sentences)
    assert np.load(home / "v.npy").shape == (len(sentences), 32)
    assert llm2comp.encode_file(model, "~/texts.txt", "~/w.npy") == len(sentences)
    assert here() == []


def test_inputs_are_in_the_home_folder(home: Path) -> None:
    (analysis,) = llm2comp.analyze(["~/rows.npy"], "~/analysis")
    assert analysis.dimension == 4
    assert named_indexes(["~/my-index", "mine=~/other"]) == {
        "my-index": "~/my-index",
        "mine": "~/other",
    }
    (home / "encoder").mkdir()
    assert stored_name("~/encoder") == str(home / "encoder")
    assert here() == []


def test_results_have_the_lineage_of_an_encoder_in_the_home_folder(home: Path) -> None:
    folder = Path(__file__).parent / "fixtures" / "v0_1" / "run-finished" / "model"
    (home / "mine").mkdir()
    shutil.copy(folder / "llm2comp.json", home / "mine")
    assert released.lineage_of("~/mine") == Lineage.read(folder)


def test_a_run_is_in_the_home_folder(
    home: Path, tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outs: list[Path] = []

    def train(_: object, out: Path) -> Path:
        outs.append(out)
        return out / "model"

    monkeypatch.setattr(pipeline, "train", train)
    assert llm2comp.train(tiny_recipe, "~/runs/mine") == home / "runs" / "mine" / "model"
    called = RUNNER.invoke(app, ["train", str(tiny_recipe), "--out=~/runs/mine"])
    assert called.exit_code == 0, called.output
    assert repr(str(home / "runs" / "mine" / "model")) in called.output
    assert outs == [home / "runs" / "mine"] * 2
    assert here() == []


def test_a_command_writes_to_the_home_folder(home: Path) -> None:
    command = ["analyze", str(home / "rows.npy"), "--out=~/analysis"]
    called = RUNNER.invoke(app, command)
    assert called.exit_code == 0, called.output
    assert (home / "analysis" / "spectrum.png").is_file()
    assert (home / "analysis" / "rows.npy.json").is_file()
    assert here() == []
    llm2comp.analyze([home / "rows.npy"], "~/again")
    assert (home / "again" / "spectrum.png").is_file()
    assert here() == []
