"""Embed texts with one client: ``python client.py CLIENT``, with the texts on standard input.

This runs in the client's own environment, which does not have llm2comp. The input is JSON with
`folder`, `texts`, `query` and `prompt`. The output is JSON on the last line: the embeddings of the
texts, and of the query as the client embeds it by default and when it is told the prompt.
"""

import asyncio
import json
import sys
from importlib import metadata
from typing import Any

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
    )
}


def main() -> None:
    task = json.load(sys.stdin)
    answer: dict[str, Any] = {"versions": {name: metadata.version(name) for name in PACKAGES}}
    try:
        found = CLIENTS[sys.argv[1]](task)
        answer |= {
            name: [[float(x) for x in row] for row in rows]
            if name == "texts"
            else list(map(float, rows))
            for name, rows in found.items()
        }
    except Exception as error:  # each client has its own errors
        answer["refused"] = f"{type(error).__name__}: {error}"
    assert "llm2comp" not in sys.modules
    sys.stdout.write(f"\n{json.dumps(answer)}\n")


main()
