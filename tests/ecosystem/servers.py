"""Servers that pool by themselves, and clients of `llm2comp serve`; see client.py."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

Embeddings = Any


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
