"""Encoder folders and run folders that were damaged, edited, or are something else."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from cases import case, cases, require_embeddings, run
from hypothesis import given
from hypothesis import strategies as st
from strategies import changed, damaged, modest_values, mostly

from llm2comp.errors import UserError
from llm2comp.evaluation import checked_export
from llm2comp.inference import compiled
from llm2comp.utils.checksums import CHECKSUMS
from llm2comp.utils.choices import Backend

SUBJECTS = ["the river", "a whale", "an old house", "the compiler", "one coin"]
VERBS = ["rises in", "reads", "keeps", "leaves", "translates", "holds"]
TEXTS = [f"{subject} {verb} the mountains" for subject in SUBJECTS for verb in VERBS]
NAMES = [
    "encoder",
    "with space",
    "line\nbreak",
    "émoji \U0001f600",
    "-dash",
    "[red]",
    "%s",
    "a.npy",
    "x" * 250,
    "name=value",
]
KINDS = ["bytes", "bytes", "json", "json", "json", "remove", "remove folder", "folder", "other"]
KINDS += ["link", "loop", "pipe", "extra"]
INSTEAD = ["empty folder", "file", "nothing", "link to nothing", "json file", "/dev/null"]


def damage(data: st.DataObject, folder: Path) -> None:
    """Damage one or two files of a folder, or edit the JSON in them."""
    for _ in range(data.draw(st.integers(1, 2), label="damages")):
        kind = data.draw(st.sampled_from(KINDS), label="kind")
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        if kind == "json":
            files = [file for file in files if file.suffix == ".json"]
        if not files:
            return
        name = data.draw(st.sampled_from([str(f.relative_to(folder)) for f in files]), label="file")
        _damage_file(data, folder / name, kind)


def _damage_file(data: st.DataObject, file: Path, kind: str) -> None:
    content = file.read_bytes()
    if kind == "bytes":
        file.write_bytes(data.draw(damaged(content)))
    elif kind == "json":
        tree = _parsed(content)
        if isinstance(tree, dict | list) and tree:
            tree = data.draw(changed(tree, modest_values), label="JSON")
            file.write_text(json.dumps(tree), encoding="utf-8")
    elif kind == "remove folder":
        shutil.rmtree(file.parent)
    elif kind == "extra":
        file.with_name(f"extra{file.suffix}").write_bytes(content)
    elif kind == "link":
        elsewhere = file.rename(f"{file}.elsewhere")
        file.symlink_to(elsewhere.name)
    else:
        file.unlink()
        if kind == "folder":
            file.mkdir()
        elif kind == "loop":
            file.symlink_to(file.name)
        elif kind == "pipe":
            file.symlink_to("/dev/null")
        elif kind == "other":
            others = sorted(other for other in file.parent.iterdir() if other.is_file())
            if others:
                shutil.copyfile(data.draw(st.sampled_from(others)), file)


def _parsed(content: bytes) -> Any:
    """Return the JSON, or nothing if an earlier damage broke it."""
    try:
        return json.loads(content)
    except ValueError:
        return None


def _place(data: st.DataObject, original: Path) -> str:
    """Put a damaged copy of a folder, or something else, into the working folder."""
    name = data.draw(mostly("encoder", st.sampled_from(NAMES)), label="name")
    instead = data.draw(mostly(None, st.sampled_from(INSTEAD)), label="instead")
    if instead is None:
        shutil.copytree(original, name)
        if data.draw(mostly(True, st.just(False)), label="without checksums"):
            Path(name, CHECKSUMS).unlink(missing_ok=True)
        damage(data, Path(name))
    elif instead == "empty folder":
        Path(name).mkdir()
    elif instead == "file":
        Path(name).write_bytes(b"text")
    elif instead == "json file":
        Path(name).write_bytes(b"{}")
    elif instead == "link to nothing":
        Path(name).symlink_to("gone")
    return "/dev/null" if instead == "/dev/null" else name


def _texts() -> str:
    Path("texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    return "texts.txt"


@cases(80)
@given(data=st.data())
def test_a_damaged_encoder_encodes_or_is_refused(encoder: Path, data: st.DataObject) -> None:
    with case("folders: encode"):
        folder = _place(data, encoder)
        outcome = run(["encode", "--out", "out.npy", "--", folder, _texts()], writes=["out.npy"])
        if outcome.status == 0:
            require_embeddings(Path("out.npy"), len(TEXTS))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("3_Normalize/config.json", {"module_input_name": [None], "module_output_name": []}),
        ("tokenizer_config.json", {"model_input_names": [[0]]}),
        ("config_sentence_transformers.json", []),
        ("1_WordWeights/config.json", {"vocab": {"a": []}, "word_weights": [1]}),
    ],
)
@pytest.mark.parametrize("reference", [True, False])
def test_any_error_of_the_libraries_is_one_line(
    encoder: Path, file: str, content: Any, reference: bool
) -> None:
    with case("folders: encode"):
        shutil.copytree(encoder, "encoder")
        Path("encoder", file).write_text(json.dumps(content), encoding="utf-8")
        if not reference:  # as an older version leaves a folder
            lineage = Path("encoder/llm2comp.json")
            known = json.loads(lineage.read_text(encoding="utf-8"))
            lineage.write_text(json.dumps(known | {"reference": None}), encoding="utf-8")
        outcome = run(["encode", "encoder", _texts(), "--out", "out.npy"], writes=["out.npy"])
        assert "model 'encoder' cannot be loaded (" in outcome.error


@cases(15)
@given(data=st.data())
def test_a_damaged_encoder_is_analysed_or_refused(encoder: Path, data: st.DataObject) -> None:
    with case("folders: analyze"):
        arguments = ["analyze", "--data", _texts(), "--texts", "8", "--out", "out", "--"]
        run([*arguments, _place(data, encoder)], writes=["out"])
        for file in Path("out").glob("*.json"):
            _require_numbers(file)


@cases(6)
@given(data=st.data(), of_run=st.booleans())
def test_a_damaged_folder_is_reported_or_refused(
    encoder: Path, finished_run: Path, data: st.DataObject, of_run: bool
) -> None:
    with case("folders: report"):
        arguments = ["report", "--data", _texts(), "--texts", "30", "--out", "out.html", "--"]
        run([*arguments, _place(data, finished_run if of_run else encoder)], writes=["out.html"])


@pytest.fixture
def _no_downloads_for_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare an export on texts that are here, without its score."""
    monkeypatch.setattr(checked_export, "_texts", lambda: TEXTS)
    monkeypatch.setattr(checked_export, "_score", lambda *_: 50.0)


@pytest.mark.exhaustive
@pytest.mark.usefixtures("_no_downloads_for_export")
@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_an_encoder_is_exported(encoder: Path, to: Backend) -> None:
    """Otherwise the next test would see refusals alone."""
    try:
        compiled.require(to)
    except UserError as error:
        pytest.skip(str(error))
    with case("folders: export"):
        shutil.copytree(encoder, "encoder")
        outcome = run(["export", "--to", to, "--out", "out", "encoder"], writes=["out"])
        assert outcome.status == 0, outcome.stderr


@pytest.mark.exhaustive
@pytest.mark.usefixtures("_no_downloads_for_export")
@cases(2)
@given(data=st.data(), to=st.sampled_from(["onnx", "openvino"]))
def test_a_damaged_encoder_is_exported_or_refused(
    encoder: Path, data: st.DataObject, to: str
) -> None:
    with case("folders: export"):
        run(["export", "--to", to, "--out", "out", "--", _place(data, encoder)], writes=["out"])


@cases(15)
@given(data=st.data())
def test_a_damaged_run_is_continued_or_refused(
    short_recipe: str, finished_run: Path, data: st.DataObject
) -> None:
    with case("folders: train"):
        Path("recipe.yaml").write_text(short_recipe, encoding="utf-8")
        folder = _place(data, finished_run)
        run(["train", "recipe.yaml", f"--out={folder}"], writes=[folder], begins=folder)


@cases(8)
@given(data=st.data())
def test_a_damaged_start_is_trained_on_or_refused(
    short_recipe: str, finished_run: Path, data: st.DataObject
) -> None:
    with case("folders: start_from"):
        recipe = yaml.safe_load(short_recipe)
        recipe["stages"] = recipe["stages"][:1]
        recipe["stages"][0]["start_from"] = _place(data, finished_run / "1-pretext")
        Path("recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
        run(["train", "recipe.yaml", "--out", "run"], writes=["run"], begins="run")


def _require_numbers(file: Path) -> None:
    """Check that a JSON file has no NaN and no infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{file}: {name}")

    json.loads(file.read_text(encoding="utf-8"), parse_constant=refuse)
