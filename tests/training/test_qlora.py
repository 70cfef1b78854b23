"""QLoRA: a stage trains on weights in 4 bits, and its LoRA is merged into the original ones."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.nn.functional import cosine_similarity

from llm2comp.errors import UserError
from llm2comp.model.backbone import load_backbone
from llm2comp.model.compressor import Compressor
from llm2comp.model.loading import four_bit
from llm2comp.model.memory_tokens import add_memory_tokens
from llm2comp.recipe import Recipe, load_recipe
from llm2comp.training import pipeline
from llm2comp.training.distributed import launch
from llm2comp.training.planning.describe import notes
from llm2comp.training.planning.machines import GPUS
from llm2comp.training.planning.plan import plan_run

needs_bitsandbytes = pytest.mark.skipif(
    not find_spec("bitsandbytes"), reason="needs bitsandbytes: pip install 'llm2comp[qlora]'"
)
IN_4BIT = "backbone.load_in_4bit=true"


def _run(recipe: Path, out: Path, *changes: str) -> tuple[Recipe, Console]:
    settings = load_recipe(recipe, [IN_4BIT, *changes])
    console = Console(record=True, width=200, file=(out.parent / "console").open("w"))
    pipeline.train(settings, out, console)
    return settings, console


@pytest.fixture(scope="module")
def run(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of three stages, and what it showed."""
    out = tmp_path_factory.mktemp("qlora") / "run"
    _, console = _run(tiny_recipe, out, "unsupervised.steps=4", "supervised.steps=4")
    return out, console.export_text()


def _change(adapter: Path) -> dict[str, Tensor]:
    """Return what an adapter adds to each weight."""
    scale = (config := json.loads((adapter / "adapter_config.json").read_bytes()))["lora_alpha"]
    factors = load_file(adapter / "adapter_model.safetensors")
    layers = {name.rpartition(".lora_")[0] for name in factors if ".lora_" in name}
    return {
        f"{layer.removeprefix('base_model.model.')}.weight": scale
        / config["r"]
        * (factors[f"{layer}.lora_B.weight"] @ factors[f"{layer}.lora_A.weight"])
        for layer in layers
    }


@needs_bitsandbytes
def test_the_loss_falls_and_the_log_says_4_bits(run: tuple[Path, str]) -> None:
    out, shown = run
    lines = [json.loads(line) for line in (out / "run.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line.get("stage") == "pretext" and "loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    assert shown.count("frozen weights in 4 bits: ") == 3


@needs_bitsandbytes
def test_each_lora_is_merged_into_the_weights_before_they_were_quantised(
    run: tuple[Path, str], tiny_backbone: Path
) -> None:
    out, _ = run
    before = {
        name.removeprefix("model."): tensor
        for name, tensor in load_file(tiny_backbone / "model.safetensors").items()
    }
    for stage in ("1-pretext", "2-unsupervised", "3-supervised"):
        after = load_file(out / stage / "model.safetensors")
        change = _change(out / stage / "adapter")
        assert change
        for name, added in change.items():
            assert added.abs().max() > 1e-4, name
            torch.testing.assert_close(after[name], before[name] + added, atol=1e-5, rtol=1e-5)
        before = after


@needs_bitsandbytes
def test_the_folder_is_an_ordinary_one(run: tuple[Path, str], sentences: list[str]) -> None:
    out, _ = run
    assert "quantization" not in (out / "model" / "config.json").read_text()
    vectors = SentenceTransformer(str(out / "model"), device="cpu").encode(sentences)
    assert (vectors @ vectors.T).min() < 0.95


@needs_bitsandbytes
def test_blocks_in_4_bits_are_checkpointed(tiny_recipe: Path, tmp_path: Path) -> None:
    settings = ["pretext.steps=2", "unsupervised.steps=2", "supervised.steps=2"]
    for stage in ("pretext", "unsupervised", "supervised"):
        settings.append(f"{stage}.gradient_checkpointing=true")
    _run(tiny_recipe, tmp_path / "run", *settings)
    assert (tmp_path / "run" / "model").is_dir()


@needs_bitsandbytes
@pytest.mark.exhaustive
def test_smollm2_learns_on_4_bits_and_its_folder_is_close_to_what_was_trained(
    tiny_recipe: Path, tmp_path: Path, sentences: list[str]
) -> None:
    changes = ["backbone.name=smollm2-135m", "pretext.steps=12", "pretext.learning_rate=1e-3"]
    settings = load_recipe(tiny_recipe, [IN_4BIT, *changes])
    settings = settings.model_copy(update={"stages": settings.stages[:1]})
    pipeline.train(settings, tmp_path / "run", Console(quiet=True))
    lines = [json.loads(line) for line in (tmp_path / "run" / "run.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.9 * losses[0]
    folder = tmp_path / "run" / "model"
    saved = SentenceTransformer(str(folder), device="cpu")
    model, tokenizer = load_backbone("smollm2-135m", load_in_4bit=True)
    tokenizer = add_memory_tokens(model, tokenizer, settings.memory, settings.seed)
    assert sum(parameter.nbytes for parameter in model.parameters()) < 170e6
    stage = settings.stages[0]
    trained = Compressor(model, 4, stage.lora, bos_id=tokenizer.bos_token_id, causal=True)
    trained.load_adapter(folder / "adapter")
    texts = tokenizer(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        memory = trained.compress(texts["input_ids"], texts["attention_mask"]).mean(1)
    cosines = cosine_similarity(memory, torch.tensor(saved.encode(sentences)))
    assert cosines.min() > 0.9
    assert cosines.max() < 0.9999  # they are not the same encoder


def test_all_weights_cannot_train_in_4_bits(tiny_recipe: Path) -> None:
    with pytest.raises(UserError, match="weights in 4 bits cannot train, and unsupervised has"):
        load_recipe(tiny_recipe, [IN_4BIT, "unsupervised.lora=null"])


@pytest.mark.parametrize("by", ["FSDP", "DeepSpeed"])
def test_divided_weights_in_4_bits_are_refused(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    monkeypatch.setattr(launch, "is_divided", lambda: True)
    monkeypatch.setattr(launch, "divider", lambda: by)
    monkeypatch.setattr(launch.world, "size", lambda: 2)
    recipe = load_recipe(tiny_recipe, [IN_4BIT, "supervised.mini_batch_size=8"])
    with pytest.raises(UserError, match=f"{by} cannot divide weights in 4 bits"):
        launch.require_possible(recipe, planned=False)


def test_a_plan_counts_frozen_weights_in_4_bits(tiny_recipe: Path) -> None:
    gpu = GPUS["L4"]
    whole, small = (plan_run(load_recipe(tiny_recipe, change), gpu) for change in ([], [IN_4BIT]))
    linear = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)
    for before, after in zip(whole.stages, small.stages, strict=True):
        saved = linear * (torch.bfloat16.itemsize - four_bit.BYTES)
        assert before.weights - after.weights == pytest.approx(saved)
    assert any("counted in 4 bits" in line for line in notes(small))
    assert not any("4 bits" in line for line in notes(whole))
