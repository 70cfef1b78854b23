"""The command that compiles an encoder."""

from pathlib import Path
from typing import Annotated

import typer

from llm2comp import api
from llm2comp.cli.shared import ModelName, preload
from llm2comp.utils.choices import Backend


def export(
    model: ModelName,
    to: Annotated[Backend, typer.Option(help="Runtime to compile for.")],
    out: Annotated[Path, typer.Option(help="Encoder folder to write.")],
    int8: Annotated[
        bool, typer.Option("--int8", help="ResultStore the weights in 8 bits.")
    ] = False,
) -> None:
    """Compile an encoder for ONNX Runtime or OpenVINO.

    The export's embeddings and its score on STSBenchmark are compared with the original's.
    An export that differs too much is not written.

    \b
    Examples:
      llm2comp export smollm2-135m-llm2comp --to openvino --out runs/openvino
      llm2comp export runs/first/model --to onnx --int8 --out runs/first/onnx-int8
    """
    preload("llm2comp.evaluation.checked_export")
    typer.echo(api.export(model, to, out, int8=int8))
    typer.echo(f"SentenceTransformer({str(out)!r}, backend={to!r}) loads it where optimum is.")
