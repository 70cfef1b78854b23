"""Late interaction: a folder of stock modules whose embedding of a text is its memory vectors."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import MultiVectorEncoder
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer
from typer.testing import CliRunner

import llm2comp
from llm2comp import recipe
from llm2comp.cli.app import app
from llm2comp.errors import UserError
from llm2comp.model.lineage import Lineage
from llm2comp.training import pipeline

K = 4
QUERY, DOCUMENT = "find this: ", "read: "
TEXTS = ["a", "The river rises in the mountains.", "", "Roman coins, found near here. " * 8]


def make(tiny_recipe: Path, folder: Path, *overrides: str) -> Path:
    """Train an encoder for one step."""
    prompts = [f"prompts.query={QUERY!r}", f"prompts.document={DOCUMENT!r}"]
    settings = recipe.load_recipe(tiny_recipe, [*prompts, "pretext.steps=1", *overrides])
    first = settings.model_copy(update={"stages": settings.stages[:1]})
    return pipeline.train(first, folder)


@pytest.fixture(scope="module", params=["causal", "bidirectional"])
def encoder(
    request: pytest.FixtureRequest, tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An encoder with four memory tokens."""
    folder = tmp_path_factory.mktemp("four")
    return make(tiny_recipe, folder, f"pretext.attention={request.param}")


@pytest.fixture(scope="module")
def folder(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its export."""
    out = tmp_path_factory.mktemp("export") / "multi-vector"
    assert llm2comp.export(encoder, "multi-vector", out).difference < 1e-6
    return out


@pytest.fixture(scope="module")
def stock(folder: Path) -> MultiVectorEncoder:
    return MultiVectorEncoder(str(folder), device="cpu")


def by_hand(encoder: Path, text: str) -> torch.Tensor:
    """Return the states at the places of the memory tokens, of a plain forward pass."""
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    model = AutoModel.from_pretrained(encoder, dtype=torch.float32).eval()
    ids = tokenizer(text, truncation=True, return_tensors="pt")["input_ids"]
    assert ids[0, -K:].tolist() == list(range(model.config.vocab_size - K, model.config.vocab_size))
    with torch.no_grad():
        return normalize(model(input_ids=ids).last_hidden_state[0, -K:], dim=-1)


@pytest.mark.parametrize(("task", "prompt"), [("query", QUERY), ("document", DOCUMENT)])
def test_vectors_are_the_states_of_the_memory_tokens(
    encoder: Path, stock: MultiVectorEncoder, task: str, prompt: str
) -> None:
    encode = stock.encode_query if task == "query" else stock.encode_document
    for text, vectors in zip(TEXTS, encode(TEXTS), strict=True):
        torch.testing.assert_close(vectors, by_hand(encoder, prompt + text), atol=1e-6, rtol=0)
    for text, vectors in zip(TEXTS, stock.encode(TEXTS), strict=True):
        torch.testing.assert_close(vectors, by_hand(encoder, text), atol=1e-6, rtol=0)


def test_padding_batch_and_order_change_nothing(stock: MultiVectorEncoder) -> None:
    together = stock.encode_document(TEXTS)
    order = random.Random(0).sample(range(len(TEXTS)), len(TEXTS))
    shuffled = stock.encode_document([TEXTS[place] for place in order], batch_size=2)
    for place, vectors in zip(order, shuffled, strict=True):
        torch.testing.assert_close(vectors, together[place], atol=1e-6, rtol=0)
        alone = stock.encode_document(TEXTS[place])
        torch.testing.assert_close(alone, together[place], atol=1e-6, rtol=0)


def test_similarity_is_max_sim(stock: MultiVectorEncoder) -> None:
    queries, documents = stock.encode_query(TEXTS), stock.encode_document(TEXTS)
    expected = [
        [
            sum(max(float(one @ other) for other in document) for one in query)
            for document in documents
        ]
        for query in queries
    ]
    np.testing.assert_allclose(stock.similarity(queries, documents), expected, atol=1e-5)


def test_one_forward_pass_gives_the_single_vector_too(
    encoder: Path, stock: MultiVectorEncoder
) -> None:
    expected = llm2comp.load(encoder, "float32").encode_query(TEXTS)
    rows = stock.encode_query(TEXTS, output_value=None)
    single = torch.stack([row["sentence_embedding"] for row in rows])
    np.testing.assert_allclose(single, expected, atol=1e-6)


def test_clients_that_would_misread_the_folder_refuse_it(folder: Path) -> None:
    assert json.loads((folder / "1_Pooling" / "config.json").read_text()).startswith("This encoder")
    (name,) = json.loads((folder / "config.json").read_text())["architectures"]
    assert name.endswith("MemoryEncoder")
    settings = json.loads((folder / "config_sentence_transformers.json").read_text())
    assert settings["requirements"]["sentence-transformers"] == ">=6.2"
    modules = json.loads((folder / "modules.json").read_text())
    assert all(module["type"].startswith("sentence_transformers.") for module in modules)


def test_what_needs_one_vector_refuses_the_folder(
    folder: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    """SentenceTransformer loads it without an error, and pools over all tokens."""
    for one in (folder, str(folder)):
        with pytest.raises(UserError, match="several vectors per text.*MultiVectorEncoder"):
            llm2comp.load(one)
    with pytest.raises(UserError, match="several vectors per text"):
        llm2comp.export(folder, "multi-vector", tmp_path / "again")
    settings = recipe.load_recipe(tiny_recipe).model_dump()
    for key in ("memory", "max_length", "prompts"):
        del settings[key]
    del settings["backbone"]["name"]
    settings |= {"base": str(folder), "stages": settings["stages"][2:]}
    with pytest.raises(UserError, match=r"base .* several vectors per text"):
        pipeline.train(recipe.Recipe.model_validate(settings), tmp_path / "run")


def test_the_command_replaces_an_export_and_nothing_else(encoder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["export", str(encoder), "--to", "multi-vector", "--out", str(out)]
    for _ in range(2):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        assert "MultiVectorEncoder(" in result.output
    assert Lineage.read(out) == Lineage.read(encoder)
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not an export"):
        llm2comp.export(encoder, "multi-vector", other)
    assert [file.name for file in other.iterdir()] == ["notes.txt"]
    with pytest.raises(UserError, match="int8 and dim"):
        llm2comp.export(encoder, "multi-vector", out, dim=4)


def test_a_copy_that_has_lost_its_lineage_is_exported_too(encoder: Path, tmp_path: Path) -> None:
    """`save_pretrained` of sentence-transformers keeps no `llm2comp.json`."""
    copy = tmp_path / "copy"
    shutil.copytree(encoder, copy)
    (copy / "llm2comp.json").unlink()
    assert llm2comp.export(copy, "multi-vector", tmp_path / "out").passed
    assert not (tmp_path / "out" / "llm2comp.json").exists()
    with pytest.raises(UserError, match="no whole 'nobody/nothing' on this machine"):
        llm2comp.export("nobody/nothing", "multi-vector", tmp_path / "out")


def test_a_folder_in_bfloat16_is_exported_too(tiny_recipe: Path, tmp_path: Path) -> None:
    rounded = make(tiny_recipe, tmp_path / "run", "save_dtype=bfloat16")
    assert llm2comp.export(rounded, "multi-vector", tmp_path / "out").difference < 1e-6


def test_one_memory_token_or_none_is_refused(tiny_recipe: Path, tmp_path: Path) -> None:
    one = make(tiny_recipe, tmp_path / "one", "memory.tokens=1")
    text = ["pretext.objective=mntp", "pretext.attention=bidirectional"]
    none = make(tiny_recipe, tmp_path / "none", *text)
    for folder, why in ((one, "one memory token"), (none, "no memory tokens")):
        with pytest.raises(UserError, match=why):
            llm2comp.export(folder, "multi-vector", tmp_path / "out")
    assert not (tmp_path / "out").exists()
