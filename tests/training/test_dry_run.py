"""The dry run: what would fail after a stage's training fails before its first step."""

import re
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, PreTrainedConfig

from llm2comp.errors import UserError
from llm2comp.model.causal_lm.few_layers import layers_of_each_kind, random_model, with_layers
from llm2comp.model.causal_lm.parts import body_of
from llm2comp.recipe import load_recipe
from llm2comp.training import dry_run, pipeline

SIZE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "vocab_size": 300,
}
Usage = namedtuple("Usage", "total used free")


def refused_before_training(recipe: Path, out: Path, match: str, *overrides: str) -> str:
    """Run a recipe that must be refused, and return the message."""
    with pytest.raises(UserError, match=match) as error:
        pipeline.train(load_recipe(recipe, list(overrides)), out)
    assert "\n" not in str(error.value)
    assert not out.exists()
    return str(error.value)


def test_the_lora_of_the_last_stage_is_tried_before_the_first(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    targets = "supervised.lora.target_modules=[no_such_layer]"
    refused_before_training(tiny_recipe, tmp_path / "run", "no_such_layer", targets)


def test_the_space_that_a_run_needs_is_what_it_writes(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, list[int]]] = []
    require = dry_run._require_space

    def spy(context: Any, numbers: int, trained: list[int]) -> None:
        asked.append((numbers, trained))
        require(context, numbers, trained)

    monkeypatch.setattr(dry_run, "_require_space", spy)
    steps = [f"{stage}.steps=2" for stage in ("pretext", "unsupervised", "supervised")]
    out = tmp_path / "run"
    pipeline.train(load_recipe(tiny_recipe, steps), out)
    assert [len(trained) for _, trained in asked] == [3, 2, 1]
    for (numbers, trained), stage in zip(asked, ("1-pretext", "2-unsup", "3-sup"), strict=True):
        (folder,) = out.glob(f"{stage}*")
        weights = load_file(folder / "model.safetensors")
        memory = 4 * 32  # the first stage makes the memory embeddings
        assert numbers + memory * (stage == "1-pretext") == sum(t.numel() for t in weights.values())
        adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
        assert trained[0] == sum(tensor.numel() for tensor in adapter.values())

    numbers, trained = asked[0]
    needed = 3 * 4 * numbers + 3 * 12 * max(trained) + 4 * sum(trained)
    for free, enough in ((needed, True), (needed - 10_000, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: Usage(0, 0, free))
        again = tmp_path / f"run-{enough}"
        if enough:
            pipeline.train(load_recipe(tiny_recipe, ["pretext.steps=1", *steps[1:]]), again)
        else:
            message = refused_before_training(tiny_recipe, again, r"on a disk with 0\.0 GB free")
            assert re.search(r"needs 0\.0 GB: 3 encoder folders", message)


def test_a_folder_that_would_not_load_is_known_before_the_training(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = PreTrainedConfig.save_pretrained

    def without_type(config: PreTrainedConfig, folder: str, **options: Any) -> None:
        save(config, folder, **options)
        if ".dry-run." in str(folder):
            (Path(folder) / "config.json").write_text(
                '{"model_type": "unknown", "architectures": ["UnknownModel"], "is_causal": true}'
            )

    monkeypatch.setattr(PreTrainedConfig, "save_pretrained", without_type)
    refused_before_training(tiny_recipe, tmp_path / "run", "dry run .* would not load again")


def test_other_embeddings_after_loading_are_known_before_the_training(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = SentenceTransformer.save_pretrained

    def with_a_wrong_weight(built: SentenceTransformer, folder: str, **options: Any) -> None:
        save(built, folder, **options)
        weights = load_file(Path(folder) / "model.safetensors")
        weights["layers.0.mlp.down_proj.weight"] *= 2
        save_file(weights, Path(folder) / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(SentenceTransformer, "save_pretrained", with_a_wrong_weight)
    refused_before_training(tiny_recipe, tmp_path / "run", "dry run .* embeddings differ")


def test_a_full_rehearsal_leaves_nothing_and_draws_no_random_numbers(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(tiny_recipe)
    context = pipeline.StageContext(
        recipe,
        recipe.stages[0],
        None,
        tmp_path / "1-pretext",
        tmp_path / ".work",
        log=None,  # type: ignore[arg-type]
    )
    before = torch.get_rng_state()
    dry_run.rehearse(context)
    assert torch.equal(torch.get_rng_state(), before)
    assert list(tmp_path.iterdir()) == []


def settings(architecture: str) -> PreTrainedConfig:
    return AutoConfig.for_model(architecture, **SIZE)


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        (settings("llama"), 1),
        (AutoConfig.for_model("gpt2", n_embd=32, n_layer=8, n_head=4, vocab_size=300), 1),
        (settings("gemma2"), 2),
        (settings("gemma3_text"), 6),
        (settings("jamba"), 5),
        (settings("deepseek_v3"), 4),
    ],
    ids=lambda value: getattr(value, "model_type", str(value)),
)
def test_the_small_model_has_a_layer_of_each_kind(config: PreTrainedConfig, layers: int) -> None:
    whole = body_of(random_model(config, head=True, device="meta"))
    small = with_layers(config, layers_of_each_kind(config, whole))
    assert small.num_hidden_layers == layers
    assert config.num_hidden_layers == 8
    body = body_of(random_model(small, head=True, device="cpu"))

    def kinds(model: torch.nn.Module) -> set[str]:
        return {re.sub(r"\d+", "N", name) for name, _ in model.named_parameters()}

    assert kinds(body) == kinds(whole)


def test_the_name_of_a_late_block_is_not_looked_for_in_the_small_model(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    names = ["layers.1.self_attn.q_proj"]
    recipe = load_recipe(tiny_recipe, [f"pretext.lora.target_modules={names}"])
    dry_run.rehearse(
        pipeline.StageContext(
            recipe,
            recipe.stages[0],
            None,
            tmp_path / "1-pretext",
            tmp_path / ".work",
            log=None,  # type: ignore[arg-type]
        )
    )
