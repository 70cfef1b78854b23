"""The commands that compile an encoder for another runtime, and that publish one."""

from pathlib import Path
from typing import Annotated

import typer

from llm2comp import api
from llm2comp.cli.shared import Dim, MemoryTokens, ModelName, preload
from llm2comp.utils.choices import Export


def export(
    model: ModelName,
    to: Annotated[
        Export,
        typer.Option(
            help="Runtime to compile for, last-token for servers that pool by themselves, or "
            "multi-vector for late interaction."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Encoder folder to write.")],
    int8: Annotated[bool, typer.Option("--int8", help="Store the weights in 8 bits.")] = False,
    dim: Dim = None,
    memory_tokens: MemoryTokens = None,
) -> None:
    """Compile an encoder, or write it for servers or for late interaction.

    The command compares the embeddings of the export with those of the encoder, and its
    STSBenchmark score if it is compiled. It does not write an export that differs too much. An
    encoder for servers must have one memory token (memory.tokens=1, or --memory-tokens 1) and
    causal attention, and one for late interaction several.

    \b
    Examples:
      llm2comp export smollm2-135m-llm2comp --to openvino --out runs/openvino
      llm2comp export runs/first/model --to onnx --int8 --out runs/first/onnx-int8
      llm2comp export runs/first/model --to onnx --dim 128 --out runs/first/onnx-128
      llm2comp export runs/one/model --to last-token --out runs/one/served
      llm2comp export runs/nested/model --to last-token --memory-tokens 1 --out runs/nested/served
      llm2comp export runs/first/model --to multi-vector --out runs/first/multi-vector
    """
    preload("llm2comp.evaluation.checked_export")
    typer.echo(api.export(model, to, out, int8=int8, dim=dim, memory_tokens=memory_tokens))
    if to == "last-token":
        typer.echo(
            f"Serve {out} with vLLM, text-embeddings-inference or llama.cpp (guide Clients)."
        )
        return
    if to == "multi-vector":
        typer.echo(f"Load it with MultiVectorEncoder({str(out)!r}) of sentence-transformers.")
        return
    typer.echo(
        f"Load it with llm2comp.load({str(out)!r}), or with SentenceTransformer({str(out)!r}, "
        f"backend={to!r}) in an environment with optimum."
    )


def push(
    model: Annotated[
        str, typer.Argument(help="Encoder folder, or released name.", metavar="MODEL")
    ],
    repo: Annotated[str, typer.Argument(help="Repository on the hub, OWNER/NAME.", metavar="REPO")],
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository private.")
    ] = False,
    revision: Annotated[
        str | None,
        typer.Option(help="Branch to commit to, made if it is not there; default: the main one."),
    ] = None,
    message: Annotated[str | None, typer.Option(help="Message of the commit.")] = None,
) -> None:
    """Check an encoder folder, and upload it to the Hugging Face hub with its scores in its card.

    Log in first with `hf auth login`, or set HF_TOKEN. Nothing is uploaded if a file is damaged,
    names a path of this machine, or if stock sentence-transformers computes other embeddings.

    \b
    Examples:
      llm2comp push runs/first/model me/first
      llm2comp push runs/first/model me/first --private --revision v2 --message "More steps"
    """
    preload("llm2comp.publishing.push")
    typer.echo(api.push(model, repo, private=private, revision=revision, message=message))
