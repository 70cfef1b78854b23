"""An encoder that appends only the first memory tokens: what it computes, and who says so."""

import logging
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from sentence_transformers import MultiVectorEncoder, SentenceTransformer
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer
from typer.testing import CliRunner

import llm2comp
from llm2comp import recipe
from llm2comp.cli.app import app
from llm2comp.errors import UserError
from llm2comp.evaluation import checked_export
from llm2comp.evaluation import evaluate as evaluation
from llm2comp.model import released
from llm2comp.model.lineage import Lineage
from llm2comp.model.matryoshka.first_tokens import memory_tokens_of
from llm2comp.serving.loading import load_all
from llm2comp.training import pipeline
from llm2comp.utils.checksums import CALIBRATION

K, QUERY = 4, "find this: "
TEXTS = ["a", "The river rises in the mountains.", "", "Roman coins, found near here. " * 40]


def make(tiny_recipe: Path, folder: Path, *overrides: str) -> Path:
    """Train an encoder for a step of stages 1 and 3."""
    steps = ["pretext.steps=1", "supervised.steps=1", f"memory.tokens={K}"]
    changes = [f"prompts.query={QUERY!r}", *steps, *overrides]
    settings = recipe.load_recipe(tiny_recipe, changes)
    stages = [settings.stages[0], settings.stages[2]]
    return pipeline.train(settings.model_copy(update={"stages": stages}), folder)


@pytest.fixture(scope="module", params=["causal", "bidirectional"])
def encoder(
    request: pytest.FixtureRequest, tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An encoder with four memory tokens, trained with two and one."""
    keys = [f"pretext.attention={request.param}", "supervised.matryoshka_tokens=[4, 2, 1]"]
    return make(tiny_recipe, tmp_path_factory.mktemp("four"), *keys)


@pytest.fixture
def file(tmp_path: Path, sentences: list[str]) -> Path:
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(sentences) + "\n")
    return file


def by_hand(folder: Path, text: str, count: int) -> torch.Tensor:
    """Return the states of the first memory tokens where the later ones are not there."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    ids = tokenizer(text, truncation=True, return_tensors="pt")["input_ids"]
    assert ids[0, -K:].tolist() == list(range(model.config.vocab_size - K, model.config.vocab_size))
    with torch.no_grad():
        states = model(input_ids=ids[:, : ids.shape[1] - K + count]).last_hidden_state
    return states[0, -count:]


def embedding(folder: Path, text: str, count: int) -> np.ndarray:
    return normalize(by_hand(folder, text, count).mean(0), dim=0).numpy()


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_embedding_is_the_mean_of_the_first_outputs(encoder: Path, count: int) -> None:
    model = llm2comp.load(encoder, "float32", memory_tokens=count)
    for prompt, encode in (("", model.encode), (QUERY, model.encode_query)):
        expected = [embedding(encoder, prompt + text, count) for text in TEXTS]
        np.testing.assert_allclose(encode(TEXTS), expected, atol=1e-6)


def test_padding_batch_and_order_change_nothing(encoder: Path) -> None:
    model = llm2comp.load(encoder, "float32", memory_tokens=2)
    together = model.encode(TEXTS)
    order = random.Random(0).sample(range(len(TEXTS)), len(TEXTS))
    shuffled = model.encode([TEXTS[place] for place in order], batch_size=2)
    np.testing.assert_allclose(shuffled, together[order], atol=1e-6)
    alone = np.stack([model.encode(text) for text in TEXTS])
    np.testing.assert_allclose(alone, together, atol=1e-6)


def test_as_much_of_a_text_is_read_and_the_batch_is_shorter(encoder: Path) -> None:
    whole, short = (llm2comp.load(encoder, "float32", memory_tokens=n) for n in (None, 1))
    wide, narrow = (
        model.tokenizer(TEXTS[-1], truncation=True)["input_ids"] for model in (whole, short)
    )
    assert len(wide) == whole.max_seq_length
    assert narrow == wide[: len(wide) - K + 1]


def test_all_tokens_are_the_encoder_as_it_is(encoder: Path) -> None:
    plain = llm2comp.load(encoder, "float32")
    every = llm2comp.load(encoder, "float32", memory_tokens=K)
    np.testing.assert_array_equal(every.encode(TEXTS), plain.encode(TEXTS))
    assert every.max_seq_length == plain.max_seq_length


def test_a_folder_that_stock_clients_save_and_load_keeps_the_number(
    encoder: Path, tmp_path: Path
) -> None:
    model = llm2comp.load(encoder, "float32", memory_tokens=2)
    model.save_pretrained(str(tmp_path / "saved"))
    stock = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_allclose(stock.encode(TEXTS), model.encode(TEXTS), atol=1e-6)


def test_merging_sees_the_tokens_that_are_there(encoder: Path) -> None:
    """The two nearest of three tokens merge, so the third has half of the weight."""
    text = TEXTS[1]
    states = by_hand(encoder, text, 3)
    unit = normalize(states, dim=-1)
    cosines = {pair: float(unit[pair[0]] @ unit[pair[1]]) for pair in ((0, 1), (0, 2), (1, 2))}
    *_, second, (nearest, largest) = sorted(cosines.items(), key=lambda item: item[1])
    threshold = (largest + second[1]) / 2
    (alone,) = {0, 1, 2} - set(nearest)
    expected = normalize((states[list(nearest)].mean(0) + states[alone]) / 2, dim=0)
    merged = llm2comp.load(encoder, "float32", threshold, memory_tokens=3).encode(text)
    np.testing.assert_allclose(merged, expected, atol=1e-6)
    assert np.abs(merged - embedding(encoder, text, 3)).max() > 1e-4


@pytest.mark.parametrize("count", [0, 5, -1])
def test_a_number_that_the_encoder_does_not_have_is_refused(encoder: Path, count: int) -> None:
    with pytest.raises(UserError, match=f"memory_tokens is {count}; .* has 1 to 4"):
        llm2comp.load(encoder, memory_tokens=count)


def test_an_encoder_without_memory_tokens_has_none_to_choose(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    keys = ["pretext.objective=mntp", "pretext.attention=bidirectional"]
    folder = make(tiny_recipe, tmp_path / "run", *keys)
    with pytest.raises(UserError, match="does not pool over memory tokens"):
        llm2comp.load(folder, memory_tokens=1)


def test_a_number_that_was_not_trained_gets_one_line(
    encoder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for count in (None, 4, 2, 1):
            llm2comp.load(encoder, "float32", memory_tokens=count)
        assert not [line for line in caplog.messages if "memory tokens" in line]
        llm2comp.load(encoder, "float32", memory_tokens=3)
    (line,) = [line for line in caplog.messages if "memory tokens" in line]
    assert "trained with 4, 2, 1 memory tokens, and not with the first 3 alone" in line


def test_the_card_says_what_was_trained(encoder: Path) -> None:
    card = (encoder / "README.md").read_text()
    assert "the mean over the first 1, 2 memory tokens beside the mean over all\n4." in card
    assert "contrastive, Matryoshka over 4, 2, 1 memory tokens" in card


def test_files_of_vectors_know_their_number(encoder: Path, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "two.parquet"
    llm2comp.encode_file(encoder, file, out, prompt="document", dtype="float32", memory_tokens=2)
    wanted = llm2comp.search(encoder, file, "a river", dtype="float32", memory_tokens=2)
    found = llm2comp.search(encoder, out, "a river", dtype="float32", memory_tokens=2)
    assert [hit.row for hit in found] == [hit.row for hit in wanted]
    with pytest.raises(UserError, match=r"vectors of 2 memory tokens, .* appends 4; .*tokens=2"):
        llm2comp.search(encoder, out, "a river")


def test_many_files_are_of_one_number(encoder: Path, file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "vectors"
    options = {"dtype": "float32", "engine": "local"}
    llm2comp.encode_files(encoder, file.parent / "*.txt", folder, memory_tokens=2, **options)
    with pytest.raises(UserError, match="memory_tokens 2, and not none"):
        llm2comp.encode_files(encoder, file.parent / "*.txt", folder, **options)


def test_an_index_keeps_its_number(encoder: Path, file: Path, tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    out = tmp_path / "index"
    llm2comp.index(encoder, file, out, dtype="float32", memory_tokens=2)
    wanted = llm2comp.search(encoder, file, "a river", dtype="float32", memory_tokens=2)
    for model in (None, encoder, llm2comp.load(encoder, "float32", memory_tokens=2)):
        found = llm2comp.open_index(out, model, dtype="float32").search("a river")
        assert [hit.text for hit in found] == [hit.text for hit in wanted]
    llm2comp.index(encoder, file, out, dtype="float32")  # brings it up to date, with two
    for number, call in (
        (4, lambda: llm2comp.open_index(out, llm2comp.load(encoder, "float32")).search("a")),
        (1, lambda: llm2comp.index(encoder, file, out, memory_tokens=1)),
    ):
        with pytest.raises(UserError, match=f"of 2 memory tokens, .* appends {number}; load"):
            call()


@pytest.mark.parametrize("sizes", [{}, {"dim": 16}])
def test_a_score_has_a_name_of_its_own(
    encoder: Path, tmp_path: Path, sets: object, sizes: dict[str, int]
) -> None:
    options = {"tasks": ["STS17"], "dtype": "float32", "out": tmp_path / "scores", **sizes}
    (short,) = llm2comp.evaluate([encoder], memory_tokens=2, **options)
    (whole,) = llm2comp.evaluate([encoder], **options)
    assert short.removeprefix(str(encoder)).startswith("@2 tokens")
    assert whole.startswith(str(encoder))
    assert "tokens" not in whole.removeprefix(str(encoder))
    assert evaluation.CHANGED_MEMORY.search(short)
    assert not evaluation.CHANGED_MEMORY.search(whole)
    assert len(list((tmp_path / "scores").glob("*/*.json"))) == 2


def test_a_search_and_an_index_of_k_vectors_have_as_many(
    encoder: Path, file: Path, tmp_path: Path
) -> None:
    pytest.importorskip("lancedb")
    out, options = tmp_path / "index", {"dtype": "float32", "memory_tokens": 2}
    llm2comp.export(encoder, "multi-vector", tmp_path / "two", memory_tokens=2)
    stock = MultiVectorEncoder(str(tmp_path / "two"), device="cpu")
    texts = file.read_text().splitlines()
    both = stock.encode_query(["a river"]), stock.encode_document(texts)
    wanted = sorted((stock.similarity(*both)[0] / 2).tolist(), reverse=True)
    found = llm2comp.search(encoder, file, "a river", vectors="k", top_k=len(texts), **options)
    assert [hit.score for hit in found] == pytest.approx(wanted, abs=1e-5)
    made = llm2comp.index(encoder, file, out, vectors="k", precision="float16", **options)
    assert (made.about.vectors, made.about.memory_tokens) == (2, 2)
    hits = llm2comp.open_index(out, dtype="float32").search("a river", top_k=len(texts))
    assert [hit.score for hit in hits] == pytest.approx(wanted, abs=1e-3)
    (of_all,) = llm2comp.search(encoder, file, "a river", vectors="k", top_k=1, dtype="float32")
    assert abs(of_all.score - wanted[0]) > 1e-4


def test_an_index_of_an_encoder_of_the_hub_keeps_its_number(
    encoder: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lancedb")
    cached = tmp_path / "hub" / "models--me--nested"
    shutil.copytree(encoder, cached / "snapshots" / ("a" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    out = tmp_path / "index"
    llm2comp.index("me/nested", file, out, dtype="float32", memory_tokens=2)
    wanted = llm2comp.search(encoder, file, "a river", dtype="float32", memory_tokens=2)
    index = llm2comp.open_index(out, dtype="float32")
    assert [hit.text for hit in index.search("a river")] == [hit.text for hit in wanted]
    assert index.about.model == "me/nested"  # and not the folder in the cache
    lineage = released.lineage_of("me/nested")
    assert lineage is not None
    assert lineage.token_counts == [4, 2, 1]


@pytest.mark.parametrize("models", [[], ["mine"]], ids=["alone", "beside its encoder"])
@pytest.mark.parametrize("order", [["two", "whole"], ["whole", "two"]], ids=" ".join)
def test_indexes_of_other_numbers_are_served_together(
    models: list[str], order: list[str], encoder: Path, file: Path, tmp_path: Path
) -> None:
    pytest.importorskip("lancedb")
    numbers = {"two": 2, "whole": K}
    for name in order:
        llm2comp.index(encoder, file, tmp_path / name, dtype="float32", memory_tokens=numbers[name])
    folders = {name: str(tmp_path / name) for name in order}
    encoders, served = load_all(dict.fromkeys(models, str(encoder)), folders, "float32", None)
    assert len(encoders) == 2
    assert set(models) <= set(encoders)
    for one in served:
        assert memory_tokens_of(encoders[one.model]) == numbers[one.name]
        alone = llm2comp.open_index(folders[one.name], dtype="float32").search("a river")
        assert [hit.id for hit in one.index.search("a river")] == [hit.id for hit in alone]


@pytest.mark.parametrize("moved", [False, True])
def test_an_index_of_fewer_tokens_is_served_beside_its_encoder(
    encoder: Path, file: Path, tmp_path: Path, moved: bool
) -> None:
    pytest.importorskip("lancedb")
    before, now = tmp_path / "before", tmp_path / "now"
    shutil.copytree(encoder, before)
    llm2comp.index(before, file, tmp_path / "two", dtype="float32", memory_tokens=2)
    folder = before.rename(now) if moved else before
    indexes = {"one": str(tmp_path / "two"), "other": str(tmp_path / "two")}
    encoders, served = load_all({"mine": str(folder)}, indexes, "float32", None)
    assert list(encoders) == ["mine", "mine@2 tokens"]
    assert [one.model for one in served] == ["mine@2 tokens"] * 2
    assert memory_tokens_of(encoders["mine@2 tokens"]) == 2
    wanted = llm2comp.open_index(tmp_path / "two", str(folder), dtype="float32").search("a river")
    found = served[0].index.search("a river")
    assert [(hit.id, hit.score) for hit in found] == [(hit.id, hit.score) for hit in wanted]


def test_the_sample_for_int8_of_all_tokens_is_not_taken(
    encoder: Path, file: Path, tmp_path: Path
) -> None:
    options = {"dtype": "float32", "precision": "int8", "memory_tokens": 1}
    llm2comp.encode_file(encoder, file, tmp_path / "short.npz", **options)
    assert not (encoder / CALIBRATION).exists()


def test_k_vectors_are_as_many(encoder: Path, tmp_path: Path) -> None:
    out = tmp_path / "multi-vector"
    assert llm2comp.export(encoder, "multi-vector", out, memory_tokens=2).difference < 1e-6
    stock = MultiVectorEncoder(str(out), device="cpu")
    for text, vectors in zip(TEXTS, stock.encode(TEXTS), strict=True):
        expected = normalize(by_hand(encoder, text, 2), dim=-1)
        torch.testing.assert_close(vectors, expected, atol=1e-6, rtol=0)
    lineage = Lineage.read(out)
    assert (lineage.num_memory_tokens, lineage.token_counts) == (2, [2, 1])


def test_the_first_token_alone_is_served_by_servers(encoder: Path, tmp_path: Path) -> None:
    """vLLM and others pool the last token, which needs one token and causal attention."""
    out = tmp_path / "served"
    if not Lineage.read(encoder).stages[-1].causal:
        with pytest.raises(UserError, match="bidirectional attention"):
            llm2comp.export(encoder, "last-token", out, memory_tokens=1)
        return
    with pytest.raises(UserError, match="has 4 memory tokens, .*--memory-tokens 1"):
        llm2comp.export(encoder, "last-token", out)
    assert llm2comp.export(encoder, "last-token", out, memory_tokens=1).difference < 1e-6
    expected = [embedding(encoder, text, 1) for text in TEXTS]
    stock = SentenceTransformer(str(out), device="cpu")
    np.testing.assert_allclose(stock.encode(TEXTS), expected, atol=1e-5)
    np.testing.assert_allclose(llm2comp.load(out, "float32").encode(TEXTS), expected, atol=1e-5)


def test_commands_take_the_number(encoder: Path, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "two.npy"
    command = ["encode", str(encoder), str(file), "--out", str(out), "--memory-tokens", "2"]
    assert CliRunner().invoke(app, command).exit_code == 0
    expected = llm2comp.encode(encoder, file.read_text().splitlines(), memory_tokens=2)
    np.testing.assert_array_equal(np.load(out), expected)


@pytest.mark.exhaustive
def test_a_compiled_encoder_keeps_the_number(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO may compute in bfloat16."""
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    monkeypatch.setattr(checked_export, "_score", lambda *_: 50.0)
    out = tmp_path / "compiled"
    assert llm2comp.export(encoder, "openvino", out, memory_tokens=2).passed
    for count, model in ((2, llm2comp.load(out)), (1, llm2comp.load(out, memory_tokens=1))):
        expected = np.stack([embedding(encoder, text, count) for text in TEXTS])
        assert ((model.encode(TEXTS) * expected).sum(1) > 0.999).all()
