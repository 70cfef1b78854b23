"""What clients ask for, and the vectors that they get: those of Python and the command line."""

import base64
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import requests
from running_server import Running, assert_problem
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from typer.testing import CliRunner

import llm2comp
from llm2comp.cli.app import app
from llm2comp.serving.settings import Limits
from llm2comp.utils.choices import Prompt


def vectors(response: requests.Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    return np.array([row["embedding"] for row in response.json()["data"]], dtype=np.float32)


def test_server_command_line_python_and_stock_give_equal_vectors(
    server: Running, folder: Path, sentences: list[str], tmp_path: Path
) -> None:
    texts = [*sentences, " ".join(sentences), "a"]
    stock = SentenceTransformer(str(folder), device="cpu").encode(texts)
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n")
    arguments = ["encode", folder, tmp_path / "texts.txt", "--out", tmp_path / "e.npy"]
    done = CliRunner().invoke(app, [*map(str, arguments), "--dtype", "float32"])
    assert done.exit_code == 0, done.output
    served = vectors(server.embed(input=texts))
    for other in (
        stock,
        np.load(tmp_path / "e.npy"),
        llm2comp.encode(folder, texts, dtype="float32"),
    ):
        np.testing.assert_allclose(served, other, atol=1e-5)


def test_vectors_do_not_depend_on_what_others_send_at_the_same_time(
    server: Running, loaded: SentenceTransformer, sentences: list[str]
) -> None:
    requests = [
        [" ".join(sentences[: 1 + (i + j) % 8]) for j in range(1 + i % 5)] for i in range(60)
    ]
    prompts = [None, "query", "document"]
    with ThreadPoolExecutor(16) as pool:
        answers = list(
            pool.map(
                lambda i: server.embed(input=requests[i], input_type=prompts[i % 3]), range(60)
            )
        )
    for i, (texts, answer) in enumerate(zip(requests, answers, strict=True)):
        expected = llm2comp.encode(loaded, texts, prompt=prompts[i % 3])  # type: ignore[arg-type]
        np.testing.assert_allclose(vectors(answer), expected, atol=1e-5)


def test_a_prompt_changes_the_vectors_as_in_python(
    server: Running, loaded: SentenceTransformer
) -> None:
    served = [
        vectors(server.embed(input="whales", input_type=kind)) for kind in ("query", "document")
    ]
    np.testing.assert_allclose(served[0][0], loaded.encode_query("whales"), atol=1e-5)
    np.testing.assert_allclose(served[1][0], loaded.encode_document("whales"), atol=1e-5)
    assert np.abs(served[0] - served[1]).max() > 1e-3


def test_ids_of_tokens_give_the_vectors_of_their_text(
    server: Running, loaded: SentenceTransformer, sentences: list[str]
) -> None:
    ids = [loaded.tokenizer.encode(text, add_special_tokens=False) for text in sentences]
    expected = loaded.encode(sentences)
    np.testing.assert_allclose(vectors(server.embed(input=ids)), expected, atol=1e-5)
    np.testing.assert_allclose(vectors(server.embed(input=ids[0])), expected[:1], atol=1e-5)


def test_ids_that_are_not_those_of_a_text_are_refused(
    server: Running, loaded: SentenceTransformer, sentences: list[str]
) -> None:
    with_special = loaded.tokenizer.encode(sentences[0])
    letters = [loaded.tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "the"]
    for ids in (with_special, letters, [10**9], [0]):  # "the" is one token
        assert_problem(server.embed(input=[ids]), 400, "the tokenizer of this model")


def test_base64_and_dimensions(server: Running, loaded: SentenceTransformer) -> None:
    whole = loaded.encode(["whales", "coins"])
    answer = server.embed(input=["whales", "coins"], dimensions=8, encoding_format="base64")
    rows = [base64.b64decode(row["embedding"]) for row in answer.json()["data"]]
    served = np.array([np.frombuffer(row, "<f4") for row in rows])
    expected = whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(served, expected, atol=1e-5)


def test_usage_is_the_tokens_that_the_model_reads(
    server: Running, loaded: SentenceTransformer, sentences: list[str]
) -> None:
    texts = [*sentences, " ".join(sentences * 2)]  # the last one is truncated
    count = int(loaded.preprocess(texts)["attention_mask"].sum())
    usage = server.embed(input=texts).json()["usage"]
    assert usage == {"prompt_tokens": count, "total_tokens": count}


def test_usage_counts_the_prompt(folder: Path, sentences: list[str]) -> None:
    prompts = {"query": "a question about ", "passage": "a text of "}
    model = llm2comp.load(folder, "float32")
    model.prompts = prompts
    running = Running({"tiny": model}, Limits())
    try:
        for kind, prompt in (("query", prompts["query"]), ("document", prompts["passage"])):
            count = int(model.preprocess(sentences, prompt=prompt)["attention_mask"].sum())
            assert count > int(model.preprocess(sentences)["attention_mask"].sum())
            usage = running.embed(input=sentences, input_type=kind).json()["usage"]
            assert usage["prompt_tokens"] == count
    finally:
        running.stop()


def test_models_are_listed(server: Running) -> None:
    listed = server.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["tiny", "second"]
    assert listed[0]["dimensions"] == 32
    assert server.get("/v1/models/second").json() == listed[1]
    assert_problem(server.get("/v1/models/third"), 404, "give one of tiny, second")


def test_a_model_that_is_no_transformer_is_served(sentences: list[str]) -> None:
    words = sorted(set(" ".join(sentences).split()))
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(["?", *words])}, "?"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    static = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)])
    running = Running({"tiny": static}, Limits())
    try:
        answer = running.embed(input=sentences)
        np.testing.assert_allclose(vectors(answer), static.encode(sentences), atol=1e-5)
        assert answer.json()["usage"]["prompt_tokens"] == sum(len(one.split()) for one in sentences)
        assert running.get("/v1/models").json()["data"][0]["max_tokens"] is None
        whole = static.encode(sentences)
        unit = whole / np.linalg.norm(whole, axis=1, keepdims=True)
        assert np.abs(whole - unit).max() > 0.1  # the model has no Normalize
        for fields, expected in (({}, unit), ({"normalize": False}, whole)):
            found = running.post("/embed", json={"inputs": sentences, **fields})
            np.testing.assert_allclose(found.json(), expected, atol=1e-5)
        shorter = vectors(running.embed(input=sentences, dimensions=4))
        np.testing.assert_allclose(np.linalg.norm(shorter, axis=1), 1, atol=1e-5)
        assert_problem(running.embed(input=[1, 2]), 400, "send the text itself")
    finally:
        running.stop()


def test_the_shapes_of_others(server: Running, loaded: SentenceTransformer) -> None:
    query = loaded.encode_query("whales")
    found = server.post("/embed", json={"inputs": "whales", "prompt_name": "query"})
    np.testing.assert_allclose(found.json(), [query], atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "prompt"),
    [
        ("search_query", "query"),
        ("search_document", "document"),
        ("classification", None),
        ("clustering", None),
    ],
)
def test_the_shape_of_cohere(
    server: Running, loaded: SentenceTransformer, kind: str, prompt: Prompt | None
) -> None:
    texts = ["whales", "coins of Rome"]
    expected = llm2comp.encode(loaded, texts, prompt=prompt)
    body = {"model": "tiny", "texts": texts, "input_type": kind}
    found = server.post("/v2/embed", json=body | {"embedding_types": ["base64", "float"]}).json()
    assert found["response_type"] == "embeddings_by_type"
    assert found["texts"] == texts
    assert found["embeddings"].keys() == {"base64", "float"}
    np.testing.assert_allclose(found["embeddings"]["float"], expected, atol=1e-5)
    packed = [base64.b64decode(row) for row in found["embeddings"]["base64"]]
    served = np.array([np.frombuffer(row, "<f4") for row in packed])
    np.testing.assert_allclose(served, expected, atol=1e-5)
    before = loaded.prompts[prompt] if prompt else ""
    read = loaded.preprocess([before + text for text in texts])
    tokens = int(read["attention_mask"].sum())
    assert found["meta"]["billed_units"] == {"input_tokens": tokens}
    alone = server.post("/v2/embed", json=body | {"output_dimension": 8}).json()["embeddings"]
    assert alone.keys() == {"float"}
    short = expected[:, :8] / np.linalg.norm(expected[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(alone["float"], short, atol=1e-5)


def test_the_client_of_openai(server: Running, loaded: SentenceTransformer) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)
    expected = loaded.encode(["whales", "coins"])
    for options in ({}, {"encoding_format": "float"}):  # by itself it asks for base64
        found = client.embeddings.create(model="tiny", input=["whales", "coins"], **options)
        np.testing.assert_allclose([row.embedding for row in found.data], expected, atol=1e-5)
    query = client.embeddings.create(
        model="tiny", input="whales", extra_body={"input_type": "query"}
    )
    np.testing.assert_allclose(query.data[0].embedding, loaded.encode_query("whales"), atol=1e-5)
    assert [model.id for model in client.models.list()] == ["tiny", "second"]
    with pytest.raises(openai.NotFoundError, match="give one of tiny, second"):
        client.embeddings.create(model="other", input="whales")


def test_the_client_of_cohere(server: Running, loaded: SentenceTransformer) -> None:
    cohere = pytest.importorskip("cohere")
    client = cohere.ClientV2(base_url=server.url, api_key="any")
    found: Any = client.embed(
        model="tiny", texts=["whales"], input_type="search_document", embedding_types=["float"]
    )
    np.testing.assert_allclose(
        found.embeddings.float_, [loaded.encode_document("whales")], atol=1e-5
    )
