"""Models that are no transformers work, or are refused in one line, in every command."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules.module import Module
from sentence_transformers.sentence_transformer.modules import (
    BoW,
    Pooling,
    StaticEmbedding,
    WordEmbeddings,
)
from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from typer.testing import CliRunner

from llm2comp.cli.app import app

RUNNER = CliRunner()
pytestmark = pytest.mark.usefixtures("empty_cache", "either_processor")


def static(words: list[str]) -> list[Module]:
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(["?", *words])}, "?"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return [StaticEmbedding(tokenizer, embedding_dim=8)]


def bag(words: list[str]) -> list[Module]:
    return [BoW(words)]


def pooled(words: list[str]) -> list[Module]:
    lower = sorted({word.lower() for word in words})
    weights = np.random.default_rng(0).normal(size=(len(lower), 8)).astype(np.float32)
    return [WordEmbeddings(WhitespaceTokenizer(lower), weights), Pooling(8)]


@pytest.fixture(params=[static, bag, pooled])
def model(request: pytest.FixtureRequest, tmp_path: Path, sentences: list[str]) -> Path:
    make: Callable[[list[str]], list[Module]] = request.param
    folder = tmp_path / "model"
    words = sorted(set(" ".join(sentences).split()))
    SentenceTransformer(modules=make(words)).save_pretrained(str(folder))
    (tmp_path / "texts.txt").write_text("\n".join(sentences) + "\n")
    return folder


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_encode_writes_the_stock_embeddings_and_says_float32(
    model: Path, dtype: str, sentences: list[str]
) -> None:
    out = model.parent / "e.npy"
    command = ["encode", model, model.parent / "texts.txt", "--out", out, "--dtype", dtype]
    result = RUNNER.invoke(app, [*map(str, command)])
    assert result.exit_code == 0, result.output
    assert f"{model}: float32, because it is not a transformer" in result.stderr
    np.testing.assert_allclose(
        np.load(out), SentenceTransformer(str(model)).encode(sentences), atol=1e-6
    )


def test_search_and_analyze_work(model: Path, sentences: list[str]) -> None:
    texts = model.parent / "texts.txt"
    result = RUNNER.invoke(app, ["search", str(model), str(texts), sentences[5], "--top-k", "1"])
    assert result.stdout == f"1.000  {sentences[5]}\n", result.output
    out = model.parent / "analysis"
    result = RUNNER.invoke(app, ["analyze", str(model), "--data", str(texts), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "nan" not in result.stdout


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("encode {model} {texts} --out e.npy --merge 0.8", "does not pool over memory tokens"),
        ("search {model} {texts} whales --merge 0.8", "does not pool over memory tokens"),
        ("export {model} --to onnx --out exported", "its first module is not a transformer"),
    ],
)
def test_what_needs_a_transformer_is_refused_in_one_line(
    model: Path, command: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "onnx" in command:
        pytest.importorskip("onnxruntime")
    monkeypatch.chdir(model.parent)
    words = command.format(model=model, texts=model.parent / "texts.txt").split()
    result = RUNNER.invoke(app, words)
    assert result.exit_code == 2
    assert said in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
