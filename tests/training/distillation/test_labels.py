"""A teacher's labels: what they are, what is learnt from them, and what is refused."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from rich.console import Console
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

sys.path.insert(0, str(Path(__file__).parents[1]))  # for base_encoders

from base_encoders import fine_tuning, write_bert, write_reranker

from llm2comp.errors import UserError
from llm2comp.evaluation import baselines
from llm2comp.recipe import Recipe
from llm2comp.recipe_parts import DataSource
from llm2comp.training import pipeline, supervised
from llm2comp.training.distillation.labels import rotation, with_labels
from llm2comp.training.losses.distillation import distillation
from llm2comp.training.losses.matryoshka import matryoshka
from llm2comp.training.trainer import AdapterCheckpoints


@pytest.fixture(scope="module")
def reranker(sentences: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reranker(tmp_path_factory.mktemp("rerankers") / "one", sentences)


@pytest.fixture(scope="module")
def encoder(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of 32 dimensions; the student has 16."""
    folder = tmp_path_factory.mktemp("teacher") / "mean"
    baselines.build("mean", tiny_backbone).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def triples(pairs: Path) -> Path:
    """The pairs, each with the positives of the two rows after it as negatives."""
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    texts = [row["positive"] for row in rows]
    for place, row in enumerate(rows):
        row["negative"] = [texts[(place + i) % len(texts)] for i in (1, 2)]
    file = pairs.with_name("triples.jsonl")
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return file


def taught(student: Path, file: Path, teacher: Path, *overrides: str) -> Recipe:
    data = f"supervised.data=[{{source: {file}, teacher: {teacher}, negatives: 2}}]"
    return fine_tuning(student, file, data, *overrides)


def train(settings: Recipe, out: Path) -> Path:
    return pipeline.train(settings, out, Console(quiet=True))


def texts_of(file: Path) -> tuple[list[str], list[str]]:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [row["anchor"] for row in rows], [row["positive"] for row in rows]


LONG = (
    "supervised.lora=null",
    "supervised.learning_rate=3e-3",
    "supervised.steps=80",
    "supervised.save_steps=80",
)
"""A training that learns the sixty rows by heart."""
ROWS = {
    "anchor": ["a compiler", "the river"],
    "positive": ["translates source code", "rises in the mountains"],
    "negative": [["whales", "roman coins"], ["vaccines", "interest rates"]],
}


def labels(student: Path, teacher: Path, folder: Path, rows: dict[str, Any]) -> Dataset:
    data = DatasetDict({"a": Dataset.from_dict(rows)})
    source = DataSource(source="a", teacher=str(teacher))
    first = with_labels(data, [source], folder / "labels", student)["a"]
    teacher.rename(folder / "away")  # what is written is read
    try:
        again = with_labels(data, [source], folder / "labels", student)["a"]
    finally:
        (folder / "away").rename(teacher)
    assert again.to_dict() == first.to_dict()
    return first


def test_a_cross_encoder_gives_logits_of_the_positive_and_each_negative(
    bert: Path, reranker: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = labels(bert, reranker, tmp_path, ROWS)
    bars = capfd.readouterr().err
    assert "6/6" in bars
    assert "Batches" not in bars
    assert found.column_names == ["anchor", "positive", "negative_1", "negative_2", "label"]
    judge = CrossEncoder(str(reranker))
    for row in found:
        candidates = [row["positive"], row["negative_1"], row["negative_2"]]
        expected = judge.predict(
            [(row["anchor"], text) for text in candidates], activation_fn=torch.nn.Identity()
        )
        assert row["label"] == pytest.approx(expected.tolist(), abs=1e-5)
    assert found["negative_2"][1] == "interest rates"


def test_an_encoder_gives_its_vectors(bert: Path, tmp_path: Path, sentences: list[str]) -> None:
    student = write_bert(tmp_path / "student", sentences[:4])
    found = np.array(labels(student, bert, tmp_path, ROWS)["label"])
    teacher = SentenceTransformer(str(bert), device="cpu")
    assert np.allclose(found[:, 0], teacher.encode_query(ROWS["anchor"]), atol=1e-5)
    assert np.allclose(found[:, 1], teacher.encode_document(ROWS["positive"]), atol=1e-5)
    negatives = [row[1] for row in ROWS["negative"]]
    assert np.allclose(found[:, 3], teacher.encode_document(negatives), atol=1e-5)


def test_zeros_of_a_teacher_stay_zeros(tmp_path: Path, bert: Path) -> None:
    """As of a text of unknown words only."""
    words = sorted({word for text in ROWS["positive"] for word in text.split()})
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(["?", *words])}, "?"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    weights = np.random.default_rng(0).standard_normal((len(words) + 1, 8)).astype(np.float32)
    weights[0] = 0
    teacher = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)])
    teacher.save_pretrained(str(tmp_path / "teacher"))
    found = np.array(labels(bert, tmp_path / "teacher", tmp_path, ROWS)["label"])
    lengths = np.linalg.norm(found, axis=-1)
    assert np.allclose(lengths[:, 1], 1, atol=1e-5)
    assert np.allclose(lengths[0, 2:], 0)


OWN_PROMPTS = {
    "an instruction": (DataSource(source="a", query_instruction="find"), []),
    "prompts of rows": (DataSource(source="a"), [["query: "]]),
}


@pytest.mark.parametrize("kind", OWN_PROMPTS)
def test_queries_with_a_prompt_of_their_own_get_no_other(
    bert: Path, encoder: Path, reranker: Path, tmp_path: Path, kind: str
) -> None:
    """Neither from an encoder, nor from the student of a rotation, nor from a cross-encoder."""
    source, row_prompts = OWN_PROMPTS[kind]
    judge = CrossEncoder(str(reranker), prompts={"topic": "topic "}, default_prompt_name="topic")
    judge.save_pretrained(str(tmp_path / "judge"))
    judge.default_prompt_name = None

    def found(teacher: Path) -> torch.Tensor:
        data = DatasetDict({"a": Dataset.from_dict(ROWS)})
        taught = source.model_copy(update={"teacher": str(teacher)})
        folder = tmp_path / f"labels of {teacher.name}"
        return torch.tensor(with_labels(data, [taught], folder, bert, row_prompts)["a"]["label"][:])

    prompted = SentenceTransformer(str(bert), device="cpu")
    bare = torch.tensor(prompted.encode(ROWS["anchor"]))
    assert torch.allclose(found(bert)[:, 0], bare, atol=1e-5)
    plain = SentenceTransformer(str(encoder), device="cpu")  # it has no prompts
    columns = [ROWS["anchor"], ROWS["positive"], *zip(*ROWS["negative"], strict=True)]
    theirs = np.stack([plain.encode(list(one)) for one in columns], axis=1)
    ours = [prompted.encode(columns[0])]
    ours += [prompted.encode_document(list(one)) for one in columns[1:]]
    turn = rotation(theirs.reshape(-1, 32), np.stack(ours, axis=1).reshape(-1, 16))
    assert np.allclose(found(encoder), theirs @ turn, atol=1e-4)
    pairs = list(zip(ROWS["anchor"], ROWS["positive"], strict=True))
    said = judge.predict(pairs, activation_fn=torch.nn.Identity())
    assert np.allclose(found(tmp_path / "judge")[:, 0], said, atol=1e-5)


def test_a_stage_tells_which_prompts_its_rows_have(
    bert: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    anchors, positives = texts_of(pairs)
    rows = [
        {"query": query, "pos": [text], "neg": [], "prompt": "find: "}
        for query, text in zip(anchors, positives, strict=True)
    ]
    file = tmp_path / "prompted.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    given: dict[str, Any] = {}

    def stop(*_: object, **options: object) -> None:
        given.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(supervised, "with_labels", stop)
    data = f"supervised.data=[{{source: {file}, teacher: {bert}}}]"
    with pytest.raises(KeyboardInterrupt):
        train(fine_tuning(bert, pairs, data), tmp_path / "run")
    assert given["row_prompts"] == [["find: "]]


def test_a_rotation_keeps_cosines_and_comes_nearest() -> None:
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(50, 5)).astype(np.float32)
    turn = np.linalg.qr(generator.normal(size=(8, 8)))[0][:5].astype(np.float32)
    assert np.allclose(rotation(vectors, vectors @ turn), turn, atol=1e-4)
    fewer = rotation(generator.normal(size=(50, 8)).astype(np.float32), vectors)
    assert np.allclose(fewer.T @ fewer, np.eye(5), atol=1e-5)


def test_the_loss_of_scores_is_the_stock_loss_without_its_factor(
    bert: Path, reranker: Path, tmp_path: Path
) -> None:
    rows = labels(bert, reranker, tmp_path, ROWS)
    model = SentenceTransformer(str(bert), device="cpu")
    texts = [list(rows[name]) for name in rows.column_names if name != "label"]
    scores = torch.tensor(list(rows["label"]))
    stock = DistillKLDivLoss(model, student_temperature=0.05, teacher_temperature=1.0)
    found, expected = (
        loss([model.preprocess(column) for column in texts], scores).item()
        for loss in (distillation(model, rows, 0.05), stock)
    )
    assert found == pytest.approx(expected / 0.05**2, rel=1e-4)


def test_matryoshka_learns_the_first_dimensions_of_the_vectors(
    bert: Path, tmp_path: Path, sentences: list[str]
) -> None:
    student = write_bert(tmp_path / "student", sentences[:4])
    rows = labels(student, bert, tmp_path, ROWS)
    model = SentenceTransformer(str(student), device="cpu")
    loss = matryoshka(model, distillation(model, rows, 0.05), [16, 4])
    assert isinstance(loss, torch.nn.Module)
    vectors = torch.tensor(list(rows["label"]))
    texts = [list(rows[name]) for name in rows.column_names if name != "label"]
    found = loss([model.preprocess(column) for column in texts], vectors).item()
    own = torch.stack([torch.tensor(model.encode(column)) for column in texts], dim=1)
    expected = sum(
        1 - torch.cosine_similarity(own[..., :n], vectors[..., :n], dim=-1).mean() for n in (16, 4)
    )
    assert found == pytest.approx(float(expected), rel=1e-4)


def test_an_encoder_learns_the_vectors_of_its_teacher(
    bert: Path, pairs: Path, encoder: Path, tmp_path: Path
) -> None:
    folder = train(taught(bert, pairs, encoder, *LONG), tmp_path / "run")
    teacher = SentenceTransformer(str(encoder), device="cpu")
    _, texts = texts_of(pairs)

    def agreement(student: Path) -> float:
        """Return how well two encoders agree on which texts are alike."""
        model = SentenceTransformer(str(student), device="cpu")
        upper = np.triu_indices(len(texts), 1)
        cosines = [m.similarity(v := m.encode_document(texts), v)[upper] for m in (model, teacher)]
        return float(np.corrcoef(*cosines)[0, 1])

    assert agreement(folder) > agreement(bert) + 0.1


def test_an_encoder_learns_the_scores_of_a_cross_encoder(
    bert: Path, triples: Path, reranker: Path, tmp_path: Path
) -> None:
    train(taught(bert, triples, reranker, *LONG), tmp_path / "run")
    events = [json.loads(line) for line in (tmp_path / "run" / "run.jsonl").open()]
    losses = [event["loss"] for event in events if "loss" in event]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("kind", ["scores", pytest.param("vectors", marks=pytest.mark.exhaustive)])
def test_a_run_that_was_stopped_gives_the_same_weights(
    bert: Path, triples: Path, reranker: Path, encoder: Path, tmp_path: Path, kind: str
) -> None:
    teacher = {"vectors": encoder, "scores": reranker}[kind]
    settings = taught(bert, triples, teacher)
    original = AdapterCheckpoints.training_step

    def stop(trainer: AdapterCheckpoints, *args: object) -> torch.Tensor:
        if trainer.state.global_step == 3:
            raise KeyboardInterrupt
        return original(trainer, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AdapterCheckpoints, "training_step", stop)
        with pytest.raises(KeyboardInterrupt):
            train(settings, tmp_path / "stopped")
    folders = [train(settings, tmp_path / name) for name in ("stopped", "whole")]
    weights = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["supervised.data.0.teacher=no/such"], "no/such"),
        (["supervised.guide=no/such"], "no/such"),
        (["supervised.guide=RERANKER"], "is a cross-encoder; name an encoder"),
        (["supervised.data.0.teacher=RERANKER"], "its rows have none; mine some"),
    ],
)
def test_a_mistake_is_told(
    bert: Path, pairs: Path, reranker: Path, tmp_path: Path, overrides: list[str], said: str
) -> None:
    given = [one.replace("RERANKER", str(reranker)) for one in overrides]
    with pytest.raises(UserError, match=said):
        train(fine_tuning(bert, pairs, *given), tmp_path / "run")
    assert not list((tmp_path / "run").glob("**/checkpoint-*"))


def test_uneven_negatives_are_refused(bert: Path, encoder: Path, tmp_path: Path) -> None:
    uneven = ROWS | {"negative": [["whales"], ["vaccines", "interest rates"]]}
    with pytest.raises(UserError, match="its rows have 1 to 2 negatives"):
        labels(bert, encoder, tmp_path, uneven)
