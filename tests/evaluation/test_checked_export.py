"""Compiled encoders encode as their originals do, and an export that would not is refused."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules.transformer import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizerFast,
)
from typer.testing import CliRunner

from llm2comp import api, recipe
from llm2comp.cli.app import app
from llm2comp.errors import UserError
from llm2comp.evaluation import checked_export, store
from llm2comp.inference import compiled
from llm2comp.inference.compiled import Backend
from llm2comp.inference.encode_file import encode_file
from llm2comp.inference.load import load
from llm2comp.model import encoder
from llm2comp.model.lineage import Lineage
from llm2comp.model.memory_tokens import add_memory_tokens
from llm2comp.training import pipeline

RUNNER = CliRunner()
RUNS = bool(find_spec("transformers.exporters") and find_spec("transformers.exporters.runners"))
INSTALLED = [to for to, needed in compiled.PACKAGES.items() if RUNS and all(map(find_spec, needed))]
BACKENDS = [
    pytest.param(
        to,
        marks=pytest.mark.skipif(to not in INSTALLED, reason=f"llm2comp[{to}] is not installed"),
    )
    for to in compiled.PACKAGES
]
FIRST_BACKEND = pytest.mark.parametrize(
    "to",
    [
        BACKENDS[0],
        *(
            pytest.param(*to.values, marks=[*to.marks, pytest.mark.exhaustive])
            for to in BACKENDS[1:]
        ),
    ],
)
FIRST_FOLDER = pytest.mark.parametrize(
    "folder",
    [True, pytest.param(False, marks=pytest.mark.exhaustive)],
    indirect=True,
    ids=["causal", "bidirectional"],
)
SCORE = checked_export._score
TEXTS = ["a", "The river rises in the mountains.", "Roman coins, found near here. " * 8]


@pytest.fixture(params=[True, False], ids=["causal", "bidirectional"])
def folder(request: pytest.FixtureRequest, tiny_backbone: Path, tmp_path: Path) -> Path:
    """An untrained encoder."""
    model = AutoModelForCausalLM.from_pretrained(tiny_backbone)
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)
    extended = add_memory_tokens(model, tokenizer, recipe.Memory(tokens=4), seed=0)
    made = encoder.assemble(model, extended, 4, causal=request.param, max_length=64)
    made.save_pretrained(str(tmp_path / "encoder"), create_model_card=False)
    return tmp_path / "encoder"


@pytest.fixture(autouse=True)
def _data(
    sets: dict[str, list[dict[str, str]]],
    sentences: list[str],
    empty_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passages = [" ".join((sentences * 3)[start : start + 12]) for start in range(8)] * 9
    sets["boolq-passages"] = [{"text": passage} for passage in passages]
    # An untrained encoder's rank correlation hangs on rounding; the released one's is measured.
    monkeypatch.setattr(checked_export, "_score", lambda *_: 50.0)


def broken(break_it: Callable[[SentenceTransformer], None]) -> Callable[..., Any]:
    """Return an exporter that traces another model than it was given."""
    compile_rightly = compiled.compile_body

    def compile_wrongly(made: SentenceTransformer, *rest: Any) -> Any:
        break_it(made)
        return compile_rightly(made, *rest)

    return compile_wrongly


def ignore_padding(made: SentenceTransformer) -> None:
    body = encoder.encoder_body(made)
    forward = body.forward

    def without_mask(input_ids: torch.Tensor, attention_mask: torch.Tensor, **rest: Any) -> Any:
        return forward(input_ids=input_ids, attention_mask=attention_mask | 1, **rest)

    body.forward = without_mask


def turn_attention(made: SentenceTransformer) -> None:
    config = encoder.encoder_body(made).config
    config.is_causal = not config.is_causal


@pytest.mark.parametrize("to", BACKENDS)
def test_an_export_encodes_as_its_encoder_does(to: Backend, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    check = checked_export.export(str(folder), to, out)
    assert check.passed
    assert check.difference < checked_export.DIFFERENCE
    assert not list(out.glob("*.safetensors"))
    original, loaded = load(str(folder)), load(str(out))
    expected = original.encode(TEXTS)
    np.testing.assert_allclose((loaded.encode(TEXTS) * expected).sum(1), 1, atol=1e-3)
    for text, vector in zip(TEXTS, expected, strict=True):  # alone, without padding
        assert loaded.encode(text) @ vector == pytest.approx(1, abs=1e-3)
    file = tmp_path / "texts.txt"
    file.write_text("a text\n")
    with pytest.raises(UserError, match="compiled one uses all threads without workers"):
        encode_file(loaded, file, tmp_path / "v.npy", workers=2)


@FIRST_BACKEND
def test_an_encoder_of_others_keeps_its_token_types_and_pooling(
    to: Backend, sentences: list[str], tmp_path: Path
) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted(set(" ".join(sentences).lower().split()))]
    bert = tmp_path / "bert"
    bert.mkdir()
    (bert / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab=str(bert / "vocab.txt"), model_max_length=48).save_pretrained(bert)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(vocab_size=len(words), intermediate_size=64, initializer_range=0.2, **sizes)
    torch.manual_seed(0)
    BertModel(config).save_pretrained(bert)
    made = SentenceTransformer(
        modules=[Transformer(str(bert)), Pooling(32, "cls"), Normalize()], device="cpu"
    )
    made.save_pretrained(str(tmp_path / "encoder"))
    assert checked_export.export(str(tmp_path / "encoder"), to, tmp_path / "out").passed
    loaded = load(str(tmp_path / "out"))
    cosines = (loaded.encode(sentences) * made.encode(sentences)).sum(1)
    np.testing.assert_allclose(cosines, 1, atol=1e-3)


@FIRST_BACKEND
@FIRST_FOLDER
def test_int8_is_smaller_and_another_model_in_the_results(
    to: Backend, folder: Path, tmp_path: Path
) -> None:
    float32, int8 = tmp_path / "float32", tmp_path / "int8"
    checked_export.export(str(folder), to, float32)
    check = checked_export.export(str(folder), to, int8, int8=True)
    assert 1e-6 < check.difference < checked_export.DIFFERENCE_INT8

    def size(out: Path) -> int:
        return sum(file.stat().st_size for file in (out / to).iterdir() if file.suffix != ".xml")

    assert size(int8) < size(float32)
    one, other = compiled.load(float32), compiled.load(int8)
    assert store.fingerprint(one) != store.fingerprint(other)


@pytest.mark.parametrize("to", BACKENDS[:1])
def test_an_export_of_few_dimensions_gives_them_in_every_client(
    to: Backend, tiny_recipe: Path, tmp_path: Path
) -> None:
    settings = recipe.load_recipe(tiny_recipe, ["pretext.steps=0"])
    settings = settings.model_copy(update={"stages": settings.stages[:1]})
    whole, out = pipeline.train(settings, tmp_path / "run"), tmp_path / "out"
    assert checked_export.export(str(whole), to, out, dim=12).passed
    expected = load(str(whole), "float32").encode(TEXTS, truncate_dim=12, normalize_embeddings=True)
    loaded = load(str(out))  # its reference embeddings have 12 dimensions too
    np.testing.assert_allclose(loaded.encode(TEXTS), expected, atol=2e-3)
    assert [type(module).__name__ for module in loaded][-2:] == ["Dense", "Normalize"]
    assert "Embeddings have\n12 dimensions" in (out / "README.md").read_text()
    assert api.encode(loaded, TEXTS, dim=5).shape == (3, 5)
    with pytest.raises(UserError, match="dim is 33; the embeddings have 32 dimensions"):
        checked_export.export(str(whole), to, tmp_path / "other", dim=33)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("to", BACKENDS[:1])
def test_the_score_of_the_encoder_is_stored_with_its_lineage(
    to: Backend, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it, `push` would not know whose score it is."""
    monkeypatch.setattr(checked_export, "_score", SCORE)
    monkeypatch.setattr(checked_export, "LOSS", 200.0)
    settings = recipe.load_recipe(tiny_recipe, ["pretext.steps=0"])
    settings = settings.model_copy(update={"stages": settings.stages[:1]})
    whole = pipeline.train(settings, tmp_path / "run")
    checked_export.export(str(whole), to, tmp_path / "out")
    (stored,) = store.ResultStore().all()
    assert (stored.model, stored.score.task) == (str(whole), "STSBenchmark")
    assert stored.lineage == Lineage.read(whole)


@pytest.mark.parametrize("to", BACKENDS[:1])
@FIRST_FOLDER
def test_a_trace_with_the_other_attention_is_refused(
    to: Backend, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "compile_body", broken(turn_attention))
    with pytest.raises(UserError, match="not written"):
        checked_export.export(str(folder), to, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", BACKENDS[:1])
@pytest.mark.parametrize("folder", [False], indirect=True, ids=["bidirectional"])
def test_a_trace_that_reads_padding_is_refused(
    to: Backend, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "compile_body", broken(ignore_padding))
    with pytest.raises(UserError, match="not written"):
        checked_export.export(str(folder), to, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_check_fails_on_a_loss_and_on_nan() -> None:
    assert checked_export.Check(difference=0.01, allowed=0.1, before=70.0, after=69.5).passed
    assert not checked_export.Check(difference=0.01, allowed=0.1, before=70.0, after=68.5).passed
    assert not checked_export.Check(
        difference=float("nan"), allowed=0.1, before=70.0, after=70.0
    ).passed


@pytest.mark.parametrize("folder", [True], indirect=True, ids=["causal"])
def test_the_command_says_what_is_wrong(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments: str) -> str:
        result = RUNNER.invoke(app, ["export", *arguments])
        assert result.exit_code == 2
        return result.stderr

    monkeypatch.setattr(compiled, "require", lambda _: None)
    assert "is not an export" in run(str(folder), "--to", "onnx", "--out", str(folder))
    (folder / "onnx").mkdir()
    (folder / "onnx" / compiled.MANIFEST).touch()
    assert "is compiled" in run(str(folder), "--to", "onnx", "--out", str(tmp_path / "out"))
    monkeypatch.undo()
    monkeypatch.setattr(compiled, "find_spec", lambda _: None)
    message = run("any", "--to", "openvino", "--out", str(tmp_path / "out"))
    assert "pip install 'llm2comp[openvino]'" in message
