"""Embeddings that differ from those saved with a folder are never used."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer

import llm2comp
from llm2comp.errors import UserError
from llm2comp.inference import load as loading
from llm2comp.inference import precision
from llm2comp.model.folder.reference import TEXTS
from llm2comp.model.lineage import LINEAGE, Lineage
from llm2comp.utils import hardware
from llm2comp.utils.choices import Precision


def copied(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


@pytest.mark.parametrize("name", ["causal", "bidirectional"])
def test_the_reference_is_what_stock_sentence_transformers_computes(
    folders: dict[str, Path], name: str
) -> None:
    reference = Lineage.read(folders[name]).reference
    assert reference is not None
    assert reference.texts == list(TEXTS)
    stock = SentenceTransformer(str(folders[name]), device="cpu")
    torch.testing.assert_close(
        stock.encode(list(TEXTS), convert_to_tensor=True),
        torch.tensor(reference.embeddings),
        atol=1e-6,
        rtol=0,
    )
    assert reference.difference(llm2comp.load(folders[name], "float32")) < 1e-6


def test_a_folder_that_computes_something_else_is_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = copied(folders["causal"], tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = config["rope_theta"] = 100.0
    (folder / "config.json").write_text(json.dumps(config))
    dtypes: tuple[Precision, ...] = ("float32", "bfloat16")
    for dtype in dtypes:
        with pytest.raises(
            UserError, match=r"copy: its embeddings differ from those saved"
        ) as stop:
            llm2comp.load(folder, dtype)
        assert "\n" not in str(stop.value)


@pytest.mark.usefixtures("empty_cache")
def test_an_encoder_that_bfloat16_changes_is_loaded_in_float32(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single word of an untrained SmolLM2 differs by 0.014; here any difference is too large."""
    monkeypatch.setattr(precision, "SMALLEST_COSINE", 1.0)
    monkeypatch.setattr(hardware, "_processor_flags", lambda: frozenset({"avx512_bf16"}))
    monkeypatch.setattr(loading, "SAME_IN_HALF", 0.0)
    for _ in ("checked", "from the cache"):
        model = llm2comp.load(folders["causal"])
        assert next(model.parameters()).dtype == torch.float32
    with pytest.raises(UserError, match=r"or it needs --dtype float32$"):
        llm2comp.load(folders["causal"], "bfloat16")


def test_a_folder_that_lost_its_last_module_is_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Without `Normalize` embeddings point the same way and are several times as long."""
    folder = copied(folders["causal"], tmp_path / "copy")
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:-1]))
    with pytest.raises(UserError, match=r"copy: its embeddings differ from those saved"):
        llm2comp.load(folder, "float32")


@pytest.mark.parametrize("name", ["modules.json", "config_sentence_transformers.json"])
def test_a_folder_that_lost_its_settings_is_refused(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """Stock sentence-transformers would load it with other modules, or without its prompts."""
    folder = copied(folders["causal"], tmp_path / "copy")
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"is incomplete: it has no {name}"):
        llm2comp.load(folder, "float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rounding_and_merging_are_no_difference(folders: dict[str, Path], dtype: Precision) -> None:
    llm2comp.load(folders["causal"], dtype)
    llm2comp.load(folders["causal"], dtype, merge_threshold=0.5)


def test_a_folder_of_an_older_version_has_no_reference(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = copied(folders["causal"], tmp_path / "copy")
    lineage = json.loads((folder / LINEAGE).read_text())
    del lineage["reference"], lineage["licence"]
    (folder / LINEAGE).write_text(json.dumps(lineage))
    llm2comp.load(folder, "float32")


def fine_tune(model: SentenceTransformer) -> None:
    """Take one large step, with all parameters that are not frozen."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    features = model.tokenize(["Whales are mammals.", "Roman coins"])
    embeddings = model(features)["sentence_embedding"]
    (embeddings[0] @ embeddings[1]).backward()
    torch.optim.SGD(parameters, lr=0.5).step()


def after_saving(model: SentenceTransformer, folder: Path) -> float:
    """Return the smallest cosine between the embeddings of a model and of its saved copy."""
    before = model.encode(list(TEXTS))
    model.save_pretrained(str(folder))
    again = SentenceTransformer(str(folder), device="cpu").encode(list(TEXTS))
    return float((before * again).sum(1).min())


def test_stock_fine_tuning_is_kept_if_the_word_weights_are_frozen_as_the_card_says(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    stock = SentenceTransformer(str(folders["causal"]), device="cpu")
    fine_tune(stock)
    assert after_saving(stock, tmp_path / "lost") < 0.9999
    frozen = SentenceTransformer(str(folders["causal"]), device="cpu")
    frozen[1].requires_grad_(False)
    fine_tune(frozen)
    assert after_saving(frozen, tmp_path / "kept") > 1 - 1e-6


def test_what_llm2comp_loads_has_frozen_word_weights(folders: dict[str, Path]) -> None:
    model = llm2comp.load(folders["causal"], "float32")
    assert not any(parameter.requires_grad for parameter in model[1].parameters())
