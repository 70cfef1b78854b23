"""Embed texts with one client: ``python client.py CLIENT``, with the texts on standard input.

This runs in the client's own environment, which does not have llm2comp. The input is a list in JSON
with `folder`, `texts`, `query` and `prompt` of each task, and the `url` of a `llm2comp serve` that
serves the folder as `model`. The output is a list in JSON on the last line: the embeddings of the
texts, and of the query as the client embeds it by default and when it is told the prompt.
"""

import asyncio
import json
import sys
from importlib import metadata
from typing import Any

import servers

Embeddings = Any
PACKAGES = ("sentence-transformers", "transformers")


def sentence_transformers(task: dict[str, Any]) -> dict[str, Embeddings]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(task["folder"], device="cpu")
    query = getattr(model, "encode_query", model.encode)  # encode_query is there from 5.0 on
    return {
        "texts": model.encode(task["texts"]),
        "default": query(task["query"]),
        "told": model.encode(task["query"], prompt_name="query"),
    }


def langchain(task: dict[str, Any]) -> dict[str, Embeddings]:
    from langchain_huggingface import HuggingFaceEmbeddings

    options: dict[str, Any] = {"model_name": task["folder"], "model_kwargs": {"device": "cpu"}}
    told = HuggingFaceEmbeddings(**options, query_encode_kwargs={"prompt_name": "query"})
    model = HuggingFaceEmbeddings(**options)
    return {
        "texts": model.embed_documents(task["texts"]),
        "default": model.embed_query(task["query"]),
        "told": told.embed_query(task["query"]),
    }


def infinity(task: dict[str, Any]) -> dict[str, Embeddings]:
    from infinity_emb import AsyncEmbeddingEngine, EngineArgs

    async def embed() -> list[Any]:
        engine = AsyncEmbeddingEngine.from_args(
            EngineArgs(
                model_name_or_path=task["folder"],
                engine="torch",
                device="cpu",
                dtype="float32",
                bettertransformer=False,
                model_warmup=False,
            )
        )
        async with engine:
            told = task["prompt"] + task["query"]
            embeddings, _ = await engine.embed(sentences=[*task["texts"], task["query"], told])
        return list(embeddings)

    *texts, default, told = asyncio.run(embed())
    return {"texts": texts, "default": default, "told": told}


def txtai(task: dict[str, Any], method: str | None = "sentence-transformers") -> Any:
    from txtai import Embeddings

    model = Embeddings(path=task["folder"], method=method)
    return {
        "texts": model.batchtransform(task["texts"], "data"),
        "default": model.transform(task["query"]),
        "told": model.transform(task["query"], "query"),
    }


def txtai_default(task: dict[str, Any]) -> dict[str, Embeddings]:
    embeddings: dict[str, Embeddings] = txtai(task, None)
    return embeddings


def llama_index(task: dict[str, Any]) -> dict[str, Embeddings]:
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    model = HuggingFaceEmbedding(task["folder"], device="cpu")
    told = HuggingFaceEmbedding(task["folder"], device="cpu", query_instruction=task["prompt"])
    return {
        "texts": model.get_text_embedding_batch(task["texts"]),
        "default": model.get_query_embedding(task["query"]),
        "told": told.get_query_embedding(task["query"]),
    }


def haystack(task: dict[str, Any]) -> dict[str, Embeddings]:
    from haystack import Document
    from haystack.utils import ComponentDevice
    from haystack_integrations.components.embedders.sentence_transformers import (
        SentenceTransformersDocumentEmbedder,
        SentenceTransformersTextEmbedder,
    )

    options = {"model": task["folder"], "device": ComponentDevice.from_str("cpu")}
    documents = SentenceTransformersDocumentEmbedder(**options, progress_bar=False)
    query = SentenceTransformersTextEmbedder(**options, progress_bar=False)
    told = SentenceTransformersTextEmbedder(**options, prefix=task["prompt"], progress_bar=False)
    for component in (documents, query, told):
        component.warm_up()
    embedded = documents.run([Document(content=text) for text in task["texts"]])["documents"]
    return {
        "texts": [document.embedding for document in embedded],
        "default": query.run(task["query"])["embedding"],
        "told": told.run(task["query"])["embedding"],
    }


def chroma(task: dict[str, Any]) -> dict[str, Embeddings]:
    from chromadb.utils.embedding_functions import SentenceTransformerEmbeddingFunction

    model = SentenceTransformerEmbeddingFunction(task["folder"], device="cpu")
    return {
        "texts": model(task["texts"]),
        "default": model.embed_query([task["query"]])[0],
        "told": model([task["prompt"] + task["query"]])[0],
    }


def qdrant(task: dict[str, Any]) -> dict[str, Embeddings]:
    """Store and search, in memory; sentence-transformers computes."""
    from qdrant_client import QdrantClient, models
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(task["folder"], device="cpu")
    client, rows = QdrantClient(":memory:"), range(len(task["texts"]))
    size = len(model.encode("a text"))
    client.create_collection(
        "texts", vectors_config=models.VectorParams(size=size, distance=models.Distance.COSINE)
    )
    vectors = model.encode(task["texts"])
    client.upload_collection("texts", vectors=vectors, ids=list(rows))
    for row in rows:
        (hit,) = client.query_points("texts", query=vectors[row], limit=1).points
        assert (hit.id, round(hit.score, 4)) == (row, 1)
    stored = client.retrieve("texts", ids=list(rows), with_vectors=True)
    return {
        "texts": [point.vector for point in stored],
        "default": model.encode_query(task["query"]),
        "told": model.encode(task["query"], prompt_name="query"),
    }


def fastembed(task: dict[str, Any]) -> dict[str, Embeddings]:
    from fastembed import TextEmbedding

    return {"texts": list(TextEmbedding(task["folder"]).embed(task["texts"]))}


def bertopic(task: dict[str, Any]) -> dict[str, Embeddings]:
    from bertopic import BERTopic
    from bertopic.dimensionality import BaseDimensionalityReduction
    from sklearn.cluster import KMeans

    parts = {"umap_model": BaseDimensionalityReduction(), "hdbscan_model": KMeans(2, n_init=1)}
    model = BERTopic(embedding_model=task["folder"], **parts)
    topics, _ = model.fit_transform([text or "nothing" for text in task["texts"]] * 4)
    assert len(set(topics)) == 2

    def embed(texts: list[str]) -> Embeddings:
        return model.embedding_model.embed_documents(texts)

    default, told = embed([task["query"], task["prompt"] + task["query"]])
    return {"texts": embed(task["texts"]), "default": default, "told": told}


def keybert(task: dict[str, Any]) -> dict[str, Embeddings]:
    from keybert import KeyBERT

    model = KeyBERT(model=task["folder"])
    ((word, score), *_) = model.extract_keywords(task["texts"][1])
    assert word in task["texts"][1].lower()
    assert 0 < score <= 1

    def embed(texts: list[str]) -> Embeddings:
        return model.model.embed(texts)

    default, told = embed([task["query"], task["prompt"] + task["query"]])
    return {"texts": embed(task["texts"]), "default": default, "told": told}


def scikit_learn(task: dict[str, Any]) -> dict[str, Embeddings]:
    """A step of a pipeline with a classifier."""
    from sentence_transformers import SentenceTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    model = SentenceTransformer(task["folder"], device="cpu")
    encode = FunctionTransformer(model.encode)
    pipeline = make_pipeline(encode, LogisticRegression(C=1e6))
    labels = [number % 2 for number in range(len(task["texts"]))]
    assert list(pipeline.fit(task["texts"], labels).predict(task["texts"])) == labels
    told = FunctionTransformer(model.encode, kw_args={"prompt_name": "query"})
    return {
        "texts": pipeline[:-1].transform(task["texts"]),
        "default": encode.transform([task["query"]])[0],
        "told": told.transform([task["query"]])[0],
    }


def mteb(task: dict[str, Any], model: Any = None) -> dict[str, Embeddings]:
    """What `mteb.evaluate` makes of a model of sentence-transformers."""
    import mteb as library
    from datasets import Dataset
    from mteb.types import PromptType
    from torch.utils.data import DataLoader

    model = model or library.SentenceTransformerEncoderWrapper(task["folder"], device="cpu")
    about = {
        "task_metadata": library.get_task("STSBenchmark").metadata,
        "hf_split": "test",
        "hf_subset": "default",
    }

    def embed(texts: list[str], prompt_type: Any = None) -> Embeddings:
        batches = DataLoader(Dataset.from_dict({"text": texts}), batch_size=len(texts))
        return model.encode(batches, prompt_type=prompt_type, **about)

    (query,) = embed([task["query"]], PromptType.query)
    return {"texts": embed(task["texts"]), "default": query, "told": query}


def mteb_run(task: dict[str, Any]) -> dict[str, Embeddings]:
    """What `mteb run -m FOLDER` loads before its tasks, which need data of the hub."""
    import mteb as library

    return mteb(task, library.get_model(task["folder"], device="cpu"))


CLIENTS = {
    function.__name__: function
    for function in (
        sentence_transformers,
        langchain,
        infinity,
        txtai,
        txtai_default,
        llama_index,
        haystack,
        chroma,
        qdrant,
        fastembed,
        bertopic,
        keybert,
        scikit_learn,
        mteb,
        mteb_run,
        servers.by_hand,
        servers.vllm,
        servers.llama_cpp,
        servers.openai,
        servers.cohere,
        servers.langchain_openai,
        servers.llama_index_openai,
    )
}


def answer(task: dict[str, Any]) -> dict[str, Any]:
    """Return what a client computes, or its error."""
    try:
        found = CLIENTS[sys.argv[1]](task)
        return {
            name: [[float(x) for x in row] for row in rows]
            if name == "texts"
            else list(map(float, rows))
            for name, rows in found.items()
        }
    except Exception as error:  # each client has its own errors
        return {"refused": f"{type(error).__name__}: {error}"}


def main() -> None:
    answers = [answer(task) for task in json.load(sys.stdin)]
    assert "llm2comp" not in sys.modules
    used = [name for name in PACKAGES if name.replace("-", "_") in sys.modules]
    versions = {"versions": {name: metadata.version(name) for name in used}}
    sys.stdout.write(f"\n{json.dumps([found | versions for found in answers])}\n")


main()
