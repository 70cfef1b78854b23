"""Memory of training: token budgets, checkpointing, and models that a stage gives back."""

import gc
import random
import re
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import LlamaConfig, LlamaModel

from llm2comp import recipe
from llm2comp.model import compressor, encoder
from llm2comp.model.lineage import Lineage
from llm2comp.model.lora import add_adapter, trainable_parameters
from llm2comp.training import contrastive, pipeline
from llm2comp.training.losses.token_limited import TokenLimitedInfoNCE, _ranges

LENGTHS = [3, 5, 9, 2, 40, 1, 1, 1, 1, 7, 100, 2]


@pytest.mark.parametrize("tokens", [10, 20, 64, 10_000])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_a_mini_batch_has_at_most_so_many_tokens_and_rows(tokens: int, rows: int) -> None:
    ranges = list(_ranges(LENGTHS, tokens, rows))
    assert [row for begin, end in ranges for row in range(begin, end)] == list(range(len(LENGTHS)))
    for begin, end in ranges:
        padded = (end - begin) * max(LENGTHS[begin:end])
        assert padded <= tokens or end - begin == 1
        assert end - begin <= rows
        if end < len(LENGTHS) and end - begin < rows:  # one more row would be too much
            assert (end + 1 - begin) * max(LENGTHS[begin : end + 1]) > tokens


@pytest.fixture(scope="module")
def stage_1(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = recipe.load_recipe(tiny_recipe, ["pretext.steps=1"])
    settings = settings.model_copy(update={"stages": settings.stages[:1]})
    return pipeline.train(settings, tmp_path_factory.mktemp("run") / "run", Console(quiet=True))


def trained(folder: Path) -> SentenceTransformer:
    model = SentenceTransformer(str(folder), device="cpu").requires_grad_(False)
    torch.manual_seed(0)
    add_adapter(encoder.encoder_body(model), recipe.Lora(r=4, dropout=0.0), 4)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.train()


def columns(model: SentenceTransformer) -> list[dict[str, Any]]:
    generator = random.Random(0)
    letters = "abcdefgh "
    texts = [["".join(generator.choices(letters, k=n)) for n in LENGTHS] for _ in range(3)]
    return [dict(model.preprocess(column)) for column in texts]


def gradients(model: SentenceTransformer, loss: torch.nn.Module) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss(columns(model), None).backward()
    return {name: p.grad.clone() for name, p in trainable_parameters(model).items()}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_token_budget_does_not_change_the_gradient(stage_1: Path, *, checkpointing: bool) -> None:
    model = trained(stage_1)
    expected = gradients(model, MultipleNegativesRankingLoss(model, scale=20.0))
    assert any("trainable_tokens" in name for name in expected)
    if checkpointing:
        body = encoder.encoder_body(model)
        body.gradient_checkpointing_enable({"use_reentrant": False})
    seen = []
    model[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]["input_ids"].numel()))
    found = gradients(model, TokenLimitedInfoNCE(model, 48, scale=20.0, mini_batch_size=100))
    assert len(seen) > 6
    longest = max(len(row) for column in columns(model) for row in column["input_ids"])
    assert max(seen) <= max(48, longest)
    for name, gradient in found.items():
        difference = (gradient - expected[name]).norm() / expected[name].norm()
        assert difference < 1e-4, name


def test_a_recipe_s_token_budget_holds_in_training(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    original = TokenLimitedInfoNCE.embed_minibatch

    def watched(self: TokenLimitedInfoNCE, **given: Any) -> Any:
        rows = given["sentence_feature"]["attention_mask"][given["begin"] : given["end"]]
        sizes.append(len(rows) * int(rows.sum(1).max()))
        return original(self, **given)

    monkeypatch.setattr(TokenLimitedInfoNCE, "embed_minibatch", watched)
    small = ["pretext.steps=1", "unsupervised.steps=1", "supervised.steps=1"]
    budget = ["unsupervised.mini_batch_tokens=300", "supervised.mini_batch_tokens=300"]
    settings = recipe.load_recipe(tiny_recipe, small + budget)
    pipeline.train(settings, tmp_path / "run", Console(quiet=True))
    assert len(sizes) > 4
    assert max(sizes) <= 300


def test_a_stage_s_model_is_gone_when_the_next_one_is_loaded(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loads are those of the backbone and of encoders; a trained model has LoRA's parameters."""
    trained_parameters: list[weakref.ref[torch.nn.Parameter]] = []
    loads: list[int] = []

    def watch_adapter(module: Any) -> None:
        add = module.add_adapter

        def added(body: Any, *arguments: Any, **options: Any) -> Any:
            adapted = add(body, *arguments, **options)
            trained_parameters.extend(map(weakref.ref, adapted.parameters()))
            return adapted

        monkeypatch.setattr(module, "add_adapter", added)

    def watch_load(module: Any, name: str) -> None:
        load = getattr(module, name)

        def loaded(*arguments: Any, **options: Any) -> Any:
            loads.append(sum(one() is not None for one in trained_parameters))
            return load(*arguments, **options)

        monkeypatch.setattr(module, name, loaded)

    watch_adapter(compressor)
    watch_adapter(contrastive)
    watch_load(encoder, "load_backbone")
    watch_load(contrastive, "SentenceTransformer")
    gc.disable()  # the collector must not help by chance
    try:
        sizes = ["pretext.steps=1", "unsupervised.steps=1", "supervised.steps=1"]
        pipeline.train(recipe.load_recipe(tiny_recipe, sizes), tmp_path / "run")
    finally:
        gc.enable()
    assert len(trained_parameters) > 60
    assert loads == [0] * 5  # stage 1 is written; UCL and SCL are loaded and written


GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "memory.md"
WIDTHS = {  # layers, hidden size, intermediate size, weights in billions
    "llama2-7b": (32, 4096, 11008, 6.74),
    "mistral-7b": (32, 4096, 14336, 7.24),
    "qwen3-8b": (36, 4096, 12288, 8.19),
}


def gigabytes(name: str, tokens: int, *, checkpointing: bool) -> float:
    """Return the formula of the guide."""
    layers, hidden, intermediate, weights = WIDTHS[name]
    block = 36 * hidden + 10 * intermediate
    per_token = 2 * hidden * layers + block if checkpointing else block * layers
    adapter = 16 * 16 * layers * (6 * hidden + 3 * (hidden + intermediate))
    return 2 * weights + (adapter + tokens * per_token) / 1e9


def test_the_table_of_the_guide_is_what_its_formula_gives() -> None:
    rows = re.findall(
        r"^\| `([\w.-]+)` \| ([\d,]+) \| (yes|no) \| (\d+) \|$", GUIDE.read_text(), re.M
    )
    assert {name for name, *_ in rows} == set(WIDTHS)
    for name, tokens, checkpointing, told in rows:
        count = int(tokens.replace(",", ""))
        found = gigabytes(name, count, checkpointing=checkpointing == "yes")
        assert round(found) == int(told), (name, tokens, checkpointing, found)


@pytest.mark.parametrize("name", WIDTHS)
def test_the_large_recipes_fit_80_gigabytes(name: str) -> None:
    for stage in recipe.load_recipe(recipe.recipe_path(name)).stages:
        assert stage.gradient_checkpointing
        if isinstance(stage, recipe.Contrastive):
            tokens = stage.mini_batch_tokens
        else:  # the encoder reads a text and memory, and the student memory and the rest
            tokens = 2 * stage.batch_size * (stage.passages.max_tokens + 9)
        assert gigabytes(name, tokens, checkpointing=True) < 0.6 * 80


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_what_the_formula_of_the_guide_says(*, checkpointing: bool) -> None:
    """Count the bytes that a block keeps for the backward pass, in bfloat16 and without padding."""
    hidden, intermediate, tokens = 256, 1024, 512

    def kept(layers: int) -> int:
        config = LlamaConfig(
            vocab_size=64,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=4,
            use_cache=False,
        )
        adapted = add_adapter(LlamaModel(config).bfloat16(), recipe.Lora(), 2).train()
        if checkpointing:
            adapted.gradient_checkpointing_enable({"use_reentrant": False})
        own = {p.untyped_storage().data_ptr() for p in adapted.parameters()}
        sizes: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", torch.bfloat16):
            output = adapted(torch.ones(1, tokens, dtype=torch.long)).last_hidden_state
        total = sum(sizes.values())
        del output
        return total

    formula = 2 * hidden if checkpointing else 36 * hidden + 10 * intermediate
    assert (kept(2) - kept(1)) / tokens == pytest.approx(formula, rel=0.05)


def test_an_encoder_is_built_from_one_copy_of_the_weights(
    stage_1: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    load = encoder.load_backbone

    def kept(*arguments: Any, **options: Any) -> Any:
        loaded.append(load(*arguments, **options))
        return loaded[-1]

    monkeypatch.setattr(encoder, "load_backbone", kept)
    lineage = Lineage.read(stage_1)
    lineage.backbone.name = str(tiny_backbone)  # the folder has the name alone
    built = encoder.build(lineage, [stage_1 / encoder.ADAPTER])
    own = {p.data_ptr() for p in loaded[0][0].parameters()}
    assert {p.data_ptr() for p in encoder.encoder_body(built).parameters()} <= own


@pytest.mark.exhaustive
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the memory")
@pytest.mark.parametrize(("dtype", "layers"), [("float32", 10), ("bfloat16", 20)])
def test_writing_an_encoder_takes_little_more_than_its_weights(
    tiny_backbone: Path, tmp_path: Path, dtype: str, layers: int
) -> None:
    script = Path(__file__).parents[1] / "model" / "write_and_measure.py"
    command = [sys.executable, script, tiny_backbone, tmp_path, dtype, str(layers)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peaks = [float(peak) for peak in done.stdout.split()[-2:]]
    assert all(0.9 < peak < 1.15 for peak in peaks), peaks
