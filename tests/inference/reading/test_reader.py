"""A reader against slow references: generation, losses, scales, and what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

import llm2comp
from llm2comp.errors import UserError
from llm2comp.inference.reading import going_on
from llm2comp.inference.reading.going_on import Memory, Sampling
from llm2comp.inference.reading.reader import Reader
from llm2comp.model.lineage import LINEAGE, Lineage
from llm2comp.recipe import load_recipe
from llm2comp.training import pipeline

GREEDY = Sampling(max_new_tokens=12)


def stage_1(recipe: Path, out: Path, *overrides: str) -> Path:
    """Train stage 1 of a recipe for a few steps, and return its folder."""
    loaded = load_recipe(recipe, ["pretext.steps=0", *overrides])
    loaded = loaded.model_copy(update={"stages": loaded.stages[:1]})
    pipeline.train(loaded, out)
    return out / "1-pretext"


@pytest.fixture(scope="module")
def folder(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage 1 that has just begun: its encoder is not the backbone, and knows little."""
    return stage_1(tiny_recipe, tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="module")
def reader(folder: Path, tiny_backbone: Path) -> Reader:
    return Reader.open(str(folder), "float32", tiny_backbone)


def by_argmax(reader: Reader, prefix: torch.Tensor, count: int) -> list[int]:
    """Read everything again for each token, and take the likeliest."""
    said: list[int] = []
    for _ in range(count):
        inputs = torch.cat([prefix, reader.embed(said)])[None]
        said.append(int(reader.model(inputs_embeds=inputs).logits[0, -1].argmax()))
        if said[-1] == reader.tokenizer.eos_token_id:
            break
    return said


def test_memory_is_what_the_encoder_pools(reader: Reader, sentences: list[str]) -> None:
    memory = Memory.of(reader, sentences)
    assert memory.vectors.shape == (8, 4, 32)
    embeddings = reader.encoder.encode(sentences, convert_to_tensor=True)
    torch.testing.assert_close(normalize(memory.vectors.mean(1), dim=-1), embeddings)


def test_memory_does_not_depend_on_the_batch(reader: Reader, sentences: list[str]) -> None:
    ids = reader.tokens(sentences)
    alone = torch.cat([reader.compress([text]) for text in ids])
    torch.testing.assert_close(reader.compress(ids), alone)
    assert reader.compress([]).shape == (0, 4, 32)


def test_going_on_equals_a_slow_loop(reader: Reader, sentences: list[str]) -> None:
    memory = Memory.of(reader, sentences[:3])
    (prompt,) = reader.tokens(["The river"])
    said = memory.go_on("The river", GREEDY)
    for row, text in enumerate(said):
        prefix = reader.prefix(memory.vectors[row], reader.embed(prompt))
        assert text == reader.decode(by_argmax(reader, prefix, GREEDY.max_new_tokens))
    assert llm2comp.generate(memory, "The river", max_new_tokens=12) == said


def test_embeddings_of_a_text_are_read_as_its_tokens(reader: Reader, sentences: list[str]) -> None:
    (ids,) = reader.tokens(sentences[:1])
    bos = reader.tokenizer.bos_token_id
    whole = reader.model.generate(
        input_ids=torch.tensor([[bos, *ids]]), generation_config=GREEDY.config(reader)
    )
    said = going_on.go_on(reader, reader.prefix(reader.embed(ids)), GREEDY)
    assert said == reader.decode(whole[0, 1 + len(ids) :].tolist())


def test_the_stream_is_the_answer(reader: Reader, sentences: list[str]) -> None:
    (ids,) = reader.tokens(sentences[:1])
    pieces: list[str] = []
    said = going_on.go_on(reader, reader.prefix(reader.embed(ids)), GREEDY, pieces.append)
    assert "".join(pieces) == said + "\n"


def test_draws_depend_on_the_seed_alone(reader: Reader, sentences: list[str]) -> None:
    memory = Memory.of(reader, sentences[:1])
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = memory.go_on("", Sampling(12, temperature=1.0, top_p=0.9, seed=1))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(4)
    assert memory.go_on("", Sampling(12, temperature=1.0, top_p=0.9, seed=1)) == first
    assert memory.go_on("", Sampling(12, temperature=1.0, top_p=0.9, seed=2)) != first
    # The likeliest token alone is left of the distribution.
    likeliest = Sampling(12, temperature=1.0, top_p=1e-6, seed=2)
    assert memory.go_on("", likeliest) == memory.go_on("", GREEDY)


def test_losses_equal_those_of_the_original_model(
    reader: Reader, sentences: list[str], tiny_backbone: Path
) -> None:
    from transformers import AutoModelForCausalLM

    original = AutoModelForCausalLM.from_pretrained(tiny_backbone)
    ids = reader.tokens(sentences)
    prefixes = [reader.prefix(reader.embed(text[:5])) for text in ids]
    after = [text[5:] for text in ids]
    states = reader.states(prefixes, after)
    for text, own in zip(ids, states, strict=True):
        with torch.no_grad():
            logits = original(torch.tensor([[reader.tokenizer.bos_token_id, *text]])).logits[0]
        wanted = cross_entropy(logits[5:-1], torch.tensor(text[5:]), reduction="none")
        torch.testing.assert_close(reader.losses(own, text[5:]), wanted)
        assert reader.divergences(own, own).abs().max() < 1e-6


def test_divergence_is_that_of_the_definition(reader: Reader, sentences: list[str]) -> None:
    (ids,) = reader.tokens(sentences[:1])
    own, other = reader.states([reader.prefix(), reader.prefix(reader.embed(ids))], [ids, ids])
    p, q = (reader.model.lm_head(states).softmax(-1) for states in (other, own))
    wanted = (p * (p.log() - q.log())).sum(-1)
    torch.testing.assert_close(reader.divergences(own, other), wanted)


@pytest.mark.parametrize("add_bos", ["false", "true"])
def test_bos_is_read_where_the_encoder_has_it(
    add_bos: str, tiny_recipe: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    folder = stage_1(tiny_recipe, tmp_path / "run", f"backbone.add_bos={add_bos}")
    reader = Reader.open(str(folder), "float32", tiny_backbone)
    memory = torch.ones(4, 32)
    bos = reader.embed([reader.tokenizer.bos_token_id])
    expected = torch.cat([bos, memory]) if add_bos == "true" else memory
    torch.testing.assert_close(reader.prefix(memory), expected)
    torch.testing.assert_close(reader.prefix(), bos)  # a model must read something


def test_the_scale_of_stage_1_is_read(
    tiny_recipe: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    folder = stage_1(tiny_recipe, tmp_path / "run", "memory.scale=embeddings")
    reader = Reader.open(str(folder), "float32", tiny_backbone)
    memory = Memory.of(reader, ["The river rises in the mountains."])
    norm = reader.model.model.embed_tokens.weight.norm(dim=-1).mean()
    torch.testing.assert_close(memory.inputs.norm(dim=-1), norm.expand(1, 4))
    torch.testing.assert_close(normalize(memory.inputs, dim=-1), normalize(memory.vectors, dim=-1))


def test_a_text_is_cut_where_the_encoder_cuts_it(reader: Reader) -> None:
    long = "river " * 2000
    assert reader.max_tokens == 512
    embedding = normalize(Memory.of(reader, [long]).vectors.mean(1), dim=-1)[0].numpy()
    np.testing.assert_allclose(embedding, reader.encoder.encode(long), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0.0"),
    ],
)
def test_a_wrong_number_is_named(settings: dict[str, float], said: str, reader: Reader) -> None:
    with pytest.raises(UserError, match=said):
        llm2comp.generate(Memory.of(reader, ["a b"]), **settings)  # type: ignore[arg-type]


def changed(folder: Path, out: Path, **values: object) -> str:
    """Copy an encoder folder, and change its lineage."""
    shutil.copytree(folder, out)
    lineage = json.loads((out / LINEAGE).read_text())
    (out / LINEAGE).write_text(json.dumps(lineage | values))
    return str(out)


def test_the_backbone_must_be_had(folder: Path, tmp_path: Path, tiny_backbone: Path) -> None:
    assert Lineage.read(folder).backbone.name == "tiny-llama"  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"backbone tiny-llama, which cannot be had .*--backbone"):
        Reader.open(str(folder), "float32")
    other = tmp_path / "other"
    shutil.copytree(tiny_backbone, other)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(other)
    with torch.no_grad():
        model.get_input_embeddings().weight[7] += 1e-3
    model.save_pretrained(other)
    with pytest.raises(UserError, match="not made of this backbone"):
        Reader.open(str(folder), "float32", other)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"prompt_format": "text"}, "has no memory to read"),
        ({"prompt_format": "summarize"}, "has no memory to read"),
        ({"last_token": True}, "is an export"),
        ({"compiled": {"to": "onnx", "int8": False}}, "is an export"),
    ],
)
def test_what_cannot_be_read_is_refused(
    values: dict[str, object], said: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said) as raised:
        Reader.open(changed(folder, tmp_path / "changed", **values))
    assert "\n" not in str(raised.value)


def test_a_folder_in_bfloat16_is_read_in_both_precisions(
    tiny_recipe: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    rounded = str(stage_1(tiny_recipe, tmp_path / "run", "save_dtype=bfloat16"))
    assert Reader.open(rounded, "float32", tiny_backbone).model.dtype == torch.float32
    assert Reader.open(rounded, "bfloat16", tiny_backbone).model.dtype == torch.bfloat16


def test_a_folder_of_others_is_refused_by_the_name_that_was_given(
    tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_backbone.parent)
    says = rf"^{tiny_backbone.name} has no memory to read: .* has no llm2comp\.json"
    with pytest.raises(UserError, match=says):
        Reader.open(tiny_backbone.name)


def test_a_later_stage_is_read_with_a_note(
    folder: Path, tmp_path: Path, tiny_backbone: Path
) -> None:
    stages = json.loads((folder / LINEAGE).read_text())["stages"]
    later = {**stages[0], "stage": "unsupervised", "objective": None, "steps": 8}
    name = changed(folder, tmp_path / "later", stages=[*stages, later])
    (note,) = Reader.open(name, "float32", tiny_backbone).notes
    assert "contrastive training (unsupervised) has moved its memory" in note


def test_too_few_positions_are_named(reader: Reader) -> None:
    prefix = reader.prefix(torch.ones(4, 32))
    with pytest.raises(UserError, match="has 2048 positions, and 2053 are needed"):
        going_on.go_on(reader, prefix, Sampling(2048))
    with pytest.raises(UserError, match="has 2048 positions, and 2055 are needed"):
        reader.states([prefix], [[5] * 2050])
