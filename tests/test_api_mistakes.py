"""What a Python user can get wrong is a `UserError` that says what to do, or simply works."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

import llm2comp
from llm2comp.errors import UserError
from llm2comp.evaluation import baselines
from llm2comp.training import pipeline


@pytest.fixture(scope="module")
def model(tiny_backbone: Path) -> SentenceTransformer:
    return baselines.build("mean", tiny_backbone)


def test_no_texts_have_no_embeddings(model: SentenceTransformer) -> None:
    assert llm2comp.encode(model, []).shape == (0, 32)


def test_a_tuple_of_texts_is_as_good_as_a_list(model: SentenceTransformer) -> None:
    texts = ("whales", "coins")
    np.testing.assert_array_equal(
        llm2comp.encode(model, texts), llm2comp.encode(model, list(texts))
    )


def test_a_lone_surrogate_is_encoded_as_in_a_file(model: SentenceTransformer) -> None:
    np.testing.assert_array_equal(
        llm2comp.encode(model, ["a \ud800"]), llm2comp.encode(model, ["a \ufffd"])
    )


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ("hello", {}, "texts is one string"),
        ([1, 2], {}, "text 0 is not a string but int"),
        (["a", None], {}, "text 1 is not a string but NoneType"),
        (["a"], {"prompt": "passage"}, "neither 'query' nor 'document'"),
        (["a"], {"batch_size": 0}, "at least 1"),
        (["a"], {"dtype": "float32"}, "dtype"),
    ],
)
def test_what_cannot_be_encoded_is_an_error(
    model: SentenceTransformer, texts: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        llm2comp.encode(model, texts, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: llm2comp.load(""), "name of the encoder is empty"),
        (lambda: llm2comp.load("x", "float16"), "dtype 'float16' is not one of auto"),
        (lambda: llm2comp.evaluate(["x"], suite="foo"), "suite 'foo' is not one of offline"),
        (lambda: llm2comp.evaluate(["x"], tasks="STS17"), r"give a list, as \['STS17'\]"),
        (lambda: llm2comp.analyze([], "out", data="x"), "name an encoder"),
        (lambda: llm2comp.report([], "out.html"), "name a run folder"),
        (lambda: llm2comp.train("demo", "out", "seed"), "'seed' is not of the form key=value"),
    ],
)
def test_a_mistake_is_an_error_that_names_it(
    call: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        call()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluation.tasks=[STSBench]", "unknown task 'STSBench'"),
        ("evaluation={tasks: [STS17], baselines: [first-token]}", "unknown baseline"),
    ],
)
def test_a_wrong_evaluation_is_an_error_before_the_training(
    override: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "train", lambda *_: pytest.fail("was trained"))
    with pytest.raises(UserError, match=message):
        llm2comp.train("demo", tmp_path / "run", [override])


def test_one_name_is_a_list_of_one(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.eye(4, dtype=np.float32))
    (analysis,) = llm2comp.analyze(tmp_path / "x.npy", tmp_path / "out")  # type: ignore[arg-type]
    assert analysis.n == 4
