"""An encoder with one memory token, exported for servers that pool by themselves."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from transformers import AutoModel, AutoTokenizer
from typer.testing import CliRunner

import llm2comp
from llm2comp import recipe
from llm2comp.cli.app import app
from llm2comp.errors import UserError
from llm2comp.inference import last_token
from llm2comp.model.base import open_base
from llm2comp.model.folder.layout import write_layout
from llm2comp.training import pipeline

TEXTS = ["a", "The river rises in the mountains.", "", "Roman coins, found near here. " * 8]
QUERY = "find this: "


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def make(tiny_recipe: Path, folder: Path, *overrides: str) -> Path:
    """Train an encoder for one step."""
    changes = [f"prompts.query={QUERY!r}", "pretext.steps=1", "memory.tokens=1", *overrides]
    settings = recipe.load_recipe(tiny_recipe, changes)
    first = settings.model_copy(update={"stages": settings.stages[:1]})
    return pipeline.train(first, folder)


@pytest.fixture(scope="module", params=["true", "false"], ids=["BOS", "no BOS"])
def encoder(
    request: pytest.FixtureRequest, tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An encoder with one memory token."""
    return make(tiny_recipe, tmp_path_factory.mktemp("one"), f"backbone.add_bos={request.param}")


@pytest.fixture(scope="module")
def export(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its export."""
    out = tmp_path_factory.mktemp("export") / "served"
    assert llm2comp.export(encoder, "last-token", out).difference < 1e-6
    return out


def pooled_by_hand(folder: Path, texts: list[str], side: str) -> np.ndarray:
    """Pool as a server does: the output of the last token that is no padding."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side=side)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
    places = torch.arange(states.shape[1]) * inputs["attention_mask"]
    last = states[torch.arange(len(texts)), places.argmax(1)]
    return torch.nn.functional.normalize(last, dim=1).numpy()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("prompt", ["", QUERY])
def test_the_last_token_pooled_by_hand_is_the_embedding(
    encoder: Path, export: Path, side: str, prompt: str
) -> None:
    texts = [prompt + text for text in TEXTS]
    expected = llm2comp.load(encoder, "float32").encode(TEXTS, prompt=prompt)
    np.testing.assert_allclose(pooled_by_hand(export, texts, side), expected, atol=1e-5)


def test_stock_clients_apply_its_prompts(encoder: Path, export: Path) -> None:
    original = llm2comp.load(encoder, "float32")
    stock = SentenceTransformer(str(export), device="cpu")
    for encode in ("encode", "encode_query", "encode_document"):
        expected = getattr(original, encode)(TEXTS)
        np.testing.assert_allclose(getattr(stock, encode)(TEXTS), expected, atol=1e-5)
    assert np.abs(stock.encode_query(TEXTS) - stock.encode(TEXTS)).max() > 0.01
    np.testing.assert_allclose(
        llm2comp.load(export, "float32").encode(TEXTS), original.encode(TEXTS), atol=1e-5
    )


def test_servers_find_what_they_read(export: Path) -> None:
    pooling = read(export / "1_Pooling" / "config.json")
    modes = [key for key, value in pooling.items() if key.startswith("pooling_mode") and value]
    assert modes == ["pooling_mode_lasttoken"]
    assert [module["type"].rpartition(".")[2] for module in read(export / "modules.json")] == [
        "Transformer",
        "Pooling",
        "Normalize",
    ]
    config, tokenizer = read(export / "config.json"), read(export / "tokenizer_config.json")
    assert config["architectures"] == ["LlamaModel"]
    template = read(export / "tokenizer.json")["post_processor"]
    # llama.cpp puts the tokens whose ids are in config.json if the template has their names.
    backend = Tokenizer.from_file(str(export / "tokenizer.json"))
    pieces = [
        piece["SpecialToken"]["id"] for piece in template["single"] if "Sequence" not in piece
    ]
    assert pieces[-1] == tokenizer["eos_token"] == "<|memory_0|>"
    assert backend.token_to_id("<|memory_0|>") == config["eos_token_id"]
    assert tokenizer["add_eos_token"]
    assert tokenizer["add_bos_token"] == (len(pieces) == 2)
    if tokenizer["add_bos_token"]:
        assert pieces[0] == tokenizer["bos_token"]
        assert backend.token_to_id(pieces[0]) == config["bos_token_id"]


def test_no_text_has_the_memory_token(export: Path) -> None:
    backend = Tokenizer.from_file(str(export / "tokenizer.json"))
    last = backend.token_to_id("<|memory_0|>")
    tokenizer = AutoTokenizer.from_pretrained(export)
    text = "a <|memory_0|> b"
    for ids in (backend.encode(text).ids, tokenizer(text)["input_ids"]):
        assert ids.count(last) == 1
        assert ids[-1] == last
    # Truncation shortens the text, and not what stands around it.
    short = tokenizer("Roman coins " * 9, truncation=True, max_length=5)["input_ids"]
    assert short[-1] == last


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["memory.tokens=2"], "2 memory tokens, and pooling of the last token reads one"),
        (["pretext.attention=bidirectional"], "has bidirectional attention"),
        (["pretext.objective=embedding_prediction"], "has a prompt after the text"),
        (["pretext.objective=mntp", "pretext.attention=bidirectional"], "has 0 memory tokens"),
    ],
)
def test_an_encoder_that_servers_would_misread_is_refused(
    overrides: list[str], message: str, tiny_recipe: Path, tmp_path: Path
) -> None:
    folder, out = make(tiny_recipe, tmp_path / "run", *overrides), tmp_path / "out"
    result = CliRunner().invoke(
        app, ["export", str(folder), "--to", "last-token", "--out", str(out)]
    )
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not out.exists()


def test_an_export_is_no_source(
    encoder: Path, export: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="is an export already"):
        llm2comp.export(export, "last-token", tmp_path / "out")
    with pytest.raises(UserError, match="is not an export"):
        llm2comp.export(encoder, "last-token", encoder)
    with pytest.raises(UserError, match="int8 and dim are for an encoder that is compiled"):
        llm2comp.export(encoder, "last-token", tmp_path / "out", int8=True)
    base = recipe.load_recipe(tiny_recipe)
    base = base.model_copy(update={"base": str(export)})
    with pytest.raises(UserError, match="is an export; give the folder that it was made from"):
        open_base(base)


def test_an_export_that_differs_is_not_written(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def average_instead(folder: Path) -> dict[str, str]:
        needed = write_layout(folder)
        file = folder / "1_Pooling" / "config.json"
        text = file.read_text().replace('_lasttoken": true', '_lasttoken": false')
        file.write_text(text.replace('_mean_tokens": false', '_mean_tokens": true'))
        return needed

    monkeypatch.setattr(last_token, "write_layout", average_instead)
    with pytest.raises(UserError, match="does not encode like"):
        llm2comp.export(encoder, "last-token", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_card_of_an_export_says_who_serves_it(encoder: Path, export: Path) -> None:
    one, other = ((folder / "README.md").read_text() for folder in (encoder, export))
    assert "An embedding is the output of the memory token" in one
    assert "WordWeights" in one
    assert "serve the folder" in other
    assert "WordWeights" not in other
    assert "adapter/" not in other
