"""The command that compiles an encoder."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from llm2comp.commands.shared import importing


def export(
    model: Annotated[str, typer.Argument(help="Encoder folder, released name or hub id.")],
    to: Annotated[Literal["onnx", "openvino"], typer.Option(help="What shall run it.")],
    out: Annotated[Path, typer.Option(help="Encoder folder to write.")],
    int8: Annotated[bool, typer.Option("--int8", help="Keep the weights in 8 bits.")] = False,
) -> None:
    """Compile an encoder for ONNX Runtime or OpenVINO.

    Its vectors and its STSBenchmark are compared with those of the original; an export
    that differs too much is not written.

    \b
    Examples:
      llm2comp export smollm2-135m-llm2comp --to openvino --out runs/openvino
      llm2comp export runs/first/model --to onnx --int8 --out runs/first/onnx-int8
    """
    with importing():
        from llm2comp.export import export as compile_encoder
    typer.echo(compile_encoder(model, to, out, int8=int8))
    typer.echo(f"SentenceTransformer({str(out)!r}, backend={to!r}) loads it where optimum is.")
