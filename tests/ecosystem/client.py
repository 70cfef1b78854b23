"""Embed texts with one client: ``python client.py CLIENT``, with the texts on standard input.

This runs in the client's own environment, which does not have llm2comp. The input is a list in JSON
with `folder`, `texts`, `query` and `prompt` of each task, and the `url` of a `llm2comp serve` that
serves the folder as `model`. The output is a list in JSON on the last line: the embeddings of the
texts, and of the query as the client embeds it by default and when it is told the prompt.
"""

import asyncio
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
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


def by_hand(task: dict[str, Any]) -> dict[str, Embeddings]:
    """Pooling of the last token, with transformers alone."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(task["folder"], padding_side="left")
    model = AutoModel.from_pretrained(task["folder"]).float().eval()

    def embed(texts: list[str]) -> Embeddings:
        with torch.no_grad():
            inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
            last = model(**inputs).last_hidden_state[:, -1]
        return torch.nn.functional.normalize(last).numpy()

    default, told = embed([task["query"], task["prompt"] + task["query"]])
    return {"texts": embed(task["texts"]), "default": default, "told": told}


def vllm(task: dict[str, Any]) -> dict[str, Embeddings]:
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
    }
    from vllm import LLM

    model = LLM(
        model=task["folder"],
        runner="pooling",
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        max_num_seqs=8,
    )
    texts = [*task["texts"], task["query"], task["prompt"] + task["query"]]
    *rows, default, told = (one.outputs.embedding for one in model.embed(texts))
    return {"texts": rows, "default": default, "told": told}


def llama_cpp(task: dict[str, Any]) -> dict[str, Embeddings]:
    """Convert with llama.cpp's script, as the guide says, and serve with its server."""
    import xllamacpp

    source, gguf = os.environ["LLAMA_CPP"], Path(task["folder"]).with_suffix(".gguf")
    code = (
        "import convert_hf_to_gguf as script\n"
        "from conversion.base import TextModel\n"
        "TextModel.get_vocab_base_pre = lambda self, tokenizer: 'smollm'\n"
        "script.main()"
    )
    options = ["--outtype", "f32", "--outfile", str(gguf)]
    converted = subprocess.run(
        [sys.executable, "-c", code, task["folder"], *options],
        env=os.environ | {"PYTHONPATH": source},
        check=False,
        capture_output=True,
        text=True,
    )
    if converted.returncode:
        raise RuntimeError(converted.stderr.strip().rpartition("\n")[2])
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(gguf)
    parameters.embedding = True
    parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_LAST
    server = xllamacpp.Server(parameters)
    texts = [*task["texts"], task["query"], task["prompt"] + task["query"]]
    answers = [server.handle_embeddings({"input": text, "model": "any"}) for text in texts]
    *rows, default, told = (answer["data"][0]["embedding"] for answer in answers)
    gguf.unlink()
    return {"texts": rows, "default": default, "told": told}


def openai(task: dict[str, Any]) -> dict[str, Embeddings]:
    from openai import OpenAI

    client = OpenAI(base_url=f"{task['url']}/v1", api_key="unused")

    def embed(texts: list[str], **fields: str) -> Embeddings:
        answer = client.embeddings.create(model=task["model"], input=texts, extra_body=fields)
        return [row.embedding for row in answer.data]

    (default,), (told,) = embed([task["query"]]), embed([task["query"]], input_type="query")
    return {"texts": embed(task["texts"]), "default": default, "told": told}


def cohere(task: dict[str, Any]) -> dict[str, Embeddings]:
    from cohere import ClientV2

    client = ClientV2(base_url=task["url"], api_key="unused")

    def embed(texts: list[str], input_type: str) -> Embeddings:
        answer = client.embed(
            model=task["model"], texts=texts, input_type=input_type, embedding_types=["float"]
        )
        return answer.embeddings.float_

    (query,) = embed([task["query"]], "search_query")
    return {"texts": embed(task["texts"], "search_document"), "default": query, "told": query}


def langchain_openai(task: dict[str, Any]) -> dict[str, Embeddings]:
    from langchain_openai import OpenAIEmbeddings

    options = {
        "model": task["model"],
        "base_url": f"{task['url']}/v1",
        "api_key": "unused",
        "check_embedding_ctx_length": False,
    }
    model = OpenAIEmbeddings(**options)
    told = OpenAIEmbeddings(**options, model_kwargs={"extra_body": {"input_type": "query"}})
    return {
        "texts": model.embed_documents(task["texts"]),
        "default": model.embed_query(task["query"]),
        "told": told.embed_query(task["query"]),
    }


def llama_index_openai(task: dict[str, Any]) -> dict[str, Embeddings]:
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding

    options = {"model_name": task["model"], "api_base": f"{task['url']}/v1", "api_key": "unused"}
    model = OpenAILikeEmbedding(**options)
    told = OpenAILikeEmbedding(**options, additional_kwargs={"extra_body": {"input_type": "query"}})
    return {
        "texts": model.get_text_embedding_batch(task["texts"]),
        "default": model.get_query_embedding(task["query"]),
        "told": told.get_query_embedding(task["query"]),
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
        qdrant,
        fastembed,
        bertopic,
        keybert,
        scikit_learn,
        mteb,
        mteb_run,
        by_hand,
        vllm,
        llama_cpp,
        openai,
        cohere,
        langchain_openai,
        llama_index_openai,
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
    installed = {found.name for found in metadata.distributions()}
    versions = {name: metadata.version(name) for name in installed.intersection(PACKAGES)}
    answers = [answer(task) | {"versions": versions} for task in json.load(sys.stdin)]
    assert "llm2comp" not in sys.modules
    sys.stdout.write(f"\n{json.dumps(answers)}\n")


main()
