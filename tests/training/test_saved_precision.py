"""Encoder folders in bfloat16: what is in them, what loads them, and what goes on from them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM

import llm2comp
from llm2comp.errors import UserError
from llm2comp.inference import calibration, last_token
from llm2comp.model import encoder
from llm2comp.model.lineage import Lineage
from llm2comp.publishing.checks import require_publishable
from llm2comp.recipe import load_recipe
from llm2comp.training import pipeline
from llm2comp.utils.checksums import CALIBRATION, require_unchanged

STAGES = ("1-pretext", "2-unsupervised", "3-supervised")
ONE_STEP = ["pretext.steps=1", "unsupervised.steps=1", "supervised.steps=1"]
WEIGHTS = "model.safetensors"


def train(recipe: Path, out: Path, *overrides: str) -> Path:
    settings = load_recipe(recipe, [*ONE_STEP, *overrides])
    return pipeline.train(settings, out, Console(quiet=True)).parent


@pytest.fixture(scope="module")
def exact(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiny_recipe, tmp_path_factory.mktemp("exact") / "run")


@pytest.fixture(scope="module")
def rounded(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rounded") / "run"
    return train(tiny_recipe, out, "save_dtype=bfloat16", "memory.tokens=1")


def require_cast_once(found: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> None:
    assert found.keys() == exact.keys()
    for name, tensor in exact.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(found[name], tensor.bfloat16()), name


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_merged_weights_are_those_in_float32_cast_once(
    exact: Path, tiny_backbone: Path, tmp_path: Path, stored: torch.dtype
) -> None:
    backbone = shutil.copytree(tiny_backbone, tmp_path / "backbone")
    AutoModelForCausalLM.from_pretrained(backbone, dtype=stored).save_pretrained(backbone)
    lineage = Lineage.read(exact / STAGES[0])
    lineage.backbone.name = str(backbone)
    adapter = exact / STAGES[0] / encoder.ADAPTER
    in_float32, in_bfloat16 = (
        encoder.encoder_body(encoder.build(lineage, [adapter], dtype)).state_dict()
        for dtype in (torch.float32, torch.bfloat16)
    )
    require_cast_once(in_bfloat16, in_float32)


def test_a_first_stage_in_bfloat16_is_that_in_float32_cast_once(
    exact: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    settings = load_recipe(tiny_recipe, ["pretext.steps=1", "save_dtype=bfloat16"])
    alone = settings.model_copy(update={"stages": settings.stages[:1]})
    model = pipeline.train(alone, tmp_path / "run", Console(quiet=True))
    require_cast_once(load_file(model / WEIGHTS), load_file(exact / STAGES[0] / WEIGHTS))
    adapters = [folder / encoder.ADAPTER for folder in (model, exact / STAGES[0])]
    first, second = (load_file(adapter / "adapter_model.safetensors") for adapter in adapters)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert {tensor.dtype for tensor in first.values()} == {torch.float32}


@pytest.mark.parametrize("number", [1, 2])
def test_a_later_stage_is_the_rounded_one_before_it_with_its_adapter(
    rounded: Path, number: int
) -> None:
    source, folder = (rounded / STAGES[n] for n in (number - 1, number))
    before = SentenceTransformer(str(source), device="cpu", model_kwargs={"dtype": torch.float32})
    encoder.merge(before, folder / encoder.ADAPTER)
    merged = encoder.encoder_body(before).state_dict()
    require_cast_once(load_file(folder / WEIGHTS), merged)
    assert any(not torch.equal(merged[name], t) for name, t in load_file(source / WEIGHTS).items())


def test_a_folder_says_its_precision_and_clients_load_it(rounded: Path, exact: Path) -> None:
    for name in (*STAGES, "model"):
        folder = rounded / name
        assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
        lineage = Lineage.read(folder)
        assert lineage.dtype == "bfloat16"
        stock = SentenceTransformer(str(folder), device="cpu")
        assert encoder.encoder_body(stock).dtype == torch.bfloat16
        assert lineage.reference.difference(stock) < 1e-2
        wide = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": "float32"})
        assert lineage.reference.difference(wide) < 1e-6
        card = (folder / "README.md").read_text()
        assert "the weights are in bfloat16" in card
        assert 'model_kwargs={"dtype": "float32"}' in card
    require_publishable("rounded", rounded / "model", Lineage.read(rounded / "model"))
    model = llm2comp.load(rounded / "model", "float32")
    assert lineage.reference.difference(model) < 1e-6
    assert "dtype" not in json.loads((exact / "model" / "llm2comp.json").read_text())
    assert "bfloat16" not in (exact / "model" / "README.md").read_text()


def test_a_run_that_goes_on_from_folders_in_bfloat16_ends_with_the_same_bits(
    rounded: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(rounded, tmp_path / "run")
    for name in ("model", *STAGES[1:]):
        shutil.rmtree(out / name)
    train(tiny_recipe, out, "save_dtype=bfloat16", "memory.tokens=1")
    for name in (*STAGES[1:], "model"):
        assert (out / name / WEIGHTS).read_bytes() == (rounded / name / WEIGHTS).read_bytes()


def test_an_encoder_in_bfloat16_is_exported_and_trained_further(
    rounded: Path, exact: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    check = last_token.export(str(rounded / "1-pretext"), tmp_path / "export")
    assert check.passed
    assert load_file(tmp_path / "export" / WEIGHTS).popitem()[1].dtype == torch.bfloat16
    settings = load_recipe(tiny_recipe, ["supervised.steps=1"])
    raw = settings.model_dump()
    for fixed in ("memory", "max_length", "prompts"):
        raw.pop(fixed)
    raw |= {"base": str(rounded / "model"), "stages": raw["stages"][2:]}
    raw["backbone"] = {"dtype": "float32"}
    model = pipeline.train(
        type(settings).model_validate(raw), tmp_path / "run", Console(quiet=True)
    )
    assert load_file(model / WEIGHTS).popitem()[1].dtype == torch.float32
    assert Lineage.read(model).dtype is None


def test_model_has_the_weights_of_the_last_stage_and_may_be_changed(
    exact: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    """Whatever is written into one of the two folders, the other one stays as it was."""
    run = tmp_path / "run"
    shutil.copytree(exact, run)
    shutil.rmtree(run / "model")
    train(tiny_recipe, run)
    last, model = run / STAGES[-1], run / "model"
    assert (model / WEIGHTS).samefile(last / WEIGHTS)
    shared = {
        file.relative_to(model).as_posix()
        for file in model.rglob("*")
        if file.is_file() and file.samefile(last / file.relative_to(model))
    }
    assert shared == {file.relative_to(model).as_posix() for file in model.rglob("*.safetensors")}
    calibration.calibration(llm2comp.load(model, "float32"), str(model))
    assert (model / CALIBRATION).is_file()
    trained = SentenceTransformer(str(model), device="cpu")
    with torch.no_grad():
        encoder.encoder_body(trained).get_input_embeddings().weight.add_(1)
    trained.save_pretrained(str(model))
    save_file({"weight": torch.zeros(1)}, model / "adapter" / "adapter_model.safetensors")
    require_unchanged(last)
    assert not (last / CALIBRATION).exists()
    with pytest.raises(UserError, match="damaged or was edited"):
        require_unchanged(model)
    shutil.rmtree(model)
    pipeline.train(load_recipe(run / "recipe.yaml"), run, Console(quiet=True))
    (last / WEIGHTS).unlink()
    require_unchanged(model)
