"""Nothing with NaN is saved, loaded, scored, searched or analysed as a model."""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch import nn

from llm2comp import recipe
from llm2comp.analysis.measure import analyze_embeddings
from llm2comp.errors import BrokenModelError, UserError
from llm2comp.evaluation import baselines, runner, suites
from llm2comp.evaluation.store import ResultStore
from llm2comp.inference.load import load, load_in
from llm2comp.inference.search import search_all
from llm2comp.model import encoder
from llm2comp.model.backbone import load_backbone
from llm2comp.training import pipeline
from llm2comp.utils.checksums import CHECKSUMS
from llm2comp.utils.finite import first_not_finite, require_finite

NAN = torch.tensor(math.nan)
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def stage_1(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder folder of a stage 1 of two steps."""
    out = tmp_path_factory.mktemp("stage_1")
    settings = recipe.load_recipe(tiny_recipe, ["pretext.steps=2"])
    pipeline.train(settings.model_copy(update={"stages": settings.stages[:1]}), out)
    return out / "1-pretext"


def broken(source: Path, target: Path, file: str, value: float = math.nan) -> str:
    """Copy a folder, break the last number of a tensor of a file, and return the tensor's name."""
    shutil.copytree(source, target)
    tensors = load_file(target / file)
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[-1] = value
    save_file(tensors, target / file, {"format": "pt"})
    (target / CHECKSUMS).unlink(missing_ok=True)
    return name


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_first_tensor_that_is_not_finite_is_named(value: float, dtype: torch.dtype) -> None:
    tensors: dict[str, torch.Tensor] = {
        "counts": torch.ones(3, dtype=torch.long),
        "empty": torch.ones(0, dtype=dtype),
        "large": torch.full((40, 50), torch.finfo(dtype).max, dtype=dtype),
        "broken": torch.ones(40, 50, dtype=dtype),
    }
    assert first_not_finite({}) is None
    assert first_not_finite(tensors) is None
    tensors["broken"][7, 9] = value
    assert first_not_finite(tensors) == "broken"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_encoder_folder_is_not_loaded(value: float, stage_1: Path, tmp_path: Path) -> None:
    name = broken(stage_1, tmp_path / "encoder", WEIGHTS, value)
    for call in (load, load_in):
        with pytest.raises(UserError, match=r"encoder' holds numbers .*not finite.*train") as error:
            call(str(tmp_path / "encoder"))
        assert name in str(error.value)


def test_a_backbone_is_not_loaded(tiny_backbone: Path, tmp_path: Path) -> None:
    name = broken(tiny_backbone, tmp_path / "backbone", WEIGHTS)
    with pytest.raises(UserError, match="not finite.*download it again") as error:
        load_backbone(str(tmp_path / "backbone"))
    assert name in str(error.value)


def test_an_adapter_is_neither_merged_nor_trained_further(
    stage_1: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    adapter = tmp_path / "copy" / "adapter"
    broken(stage_1 / "adapter", adapter, "adapter_model.safetensors")
    model = SentenceTransformer(str(stage_1), device="cpu")
    with pytest.raises(UserError, match=r"copy/adapter.*not finite.*another adapter"):
        encoder.merge(model, adapter)
    shutil.copytree(stage_1, tmp_path / "copy", dirs_exist_ok=True, ignore=_weights)
    settings = recipe.load_recipe(tiny_recipe, [f"pretext.start_from={tmp_path / 'copy'}"])
    with pytest.raises(UserError, match=r"not finite.*another adapter"):
        pipeline.train(settings, tmp_path / "run")


def _weights(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name in ("adapter_model.safetensors", CHECKSUMS)]


@pytest.mark.parametrize("name", ["norm.weight", "embed_tokens.weight"])
def test_an_encoder_is_not_saved(name: str, stage_1: Path, tmp_path: Path) -> None:
    """One with NaN, and one whose embeddings are zero although all weights are finite."""
    model = SentenceTransformer(str(stage_1), device="cpu")
    weight = encoder.encoder_body(model).get_parameter(name)
    with torch.no_grad():
        weight.zero_() if name == "norm.weight" else weight[0, 0].fill_(NAN)
    with pytest.raises(BrokenModelError, match="not finite.*is not written"):
        encoder.save(
            model, tmp_path / "new", stage_1 / "adapter", encoder.Lineage.read(stage_1), stage_1
        )
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def overflowing(tiny_backbone: Path) -> SentenceTransformer:
    """A model with finite weights whose embedding of some texts is NaN."""
    model = baselines.build("mean", tiny_backbone)

    def overflow(_: nn.Module, __: object, output: Mapping[str, torch.Tensor]) -> None:
        output["token_embeddings"][0] = NAN

    model[0].register_forward_hook(overflow)
    require_finite(model, "model", "")
    return model


def test_embeddings_of_nan_are_not_scored(
    overflowing: SentenceTransformer, sets: dict[str, list[dict[str, str]]]
) -> None:
    with pytest.raises(UserError, match="tiny: an embedding is not finite, so it is not scored"):
        runner.evaluate(overflowing, "tiny", suites.tasks(["STSBenchmark"]))


def test_a_score_of_nan_is_not_stored(
    tiny_backbone: Path, sets: dict[str, list[dict[str, str]]], tmp_path: Path
) -> None:
    """One would make every later `results` fail."""
    model = baselines.build("mean", tiny_backbone)

    def collapse(_: nn.Module, __: object, output: dict[str, torch.Tensor]) -> None:
        output["sentence_embedding"] = torch.ones_like(output["sentence_embedding"])

    model.register_forward_hook(collapse)
    tasks, store = suites.tasks(["STSBenchmark"]), ResultStore(tmp_path / "scores")
    with pytest.raises(
        UserError, match="tiny: .*STSBenchmark.*all similarities are equal"
    ) as error:
        runner.evaluate(model, "tiny", tasks, store)
    assert "\n" not in str(error.value)
    assert store.all() == []


def test_embeddings_of_nan_are_not_searched(
    overflowing: SentenceTransformer, tmp_path: Path
) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("one\ntwo\n")
    with pytest.raises(UserError, match="embedding of a query is not finite"):
        search_all(overflowing, file, ["query"])


def test_a_file_with_nan_is_not_analysed(tmp_path: Path) -> None:
    rows = np.ones((10, 4), dtype=np.float32)
    rows[7, 2] = np.inf
    np.save(tmp_path / "rows.npy", rows)
    with pytest.raises(UserError, match="rows: an embedding is not finite"):
        analyze_embeddings(tmp_path / "rows.npy", "rows")
