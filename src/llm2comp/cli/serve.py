"""The command that serves encoders over HTTP."""

from pathlib import Path
from typing import Annotated

import typer

from llm2comp.cli.shared import BatchSize, Dtype, MemoryTokens, Merge, preload


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="Encoder folders, released names, or hub ids; NAME=FOLDER serves a folder under a "
            "name.",
            metavar="MODEL",
        ),
    ] = None,
    index: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR",
            help="Folder of an index to search, or NAME=DIR; may be given several times. Its "
            "encoder is served too.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 is all of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    tokens: Annotated[
        Path | None,
        typer.Option(help="File of bearer tokens, one per line; clients must show one of them."),
    ] = None,
    dtype: Dtype = "auto",
    merge: Merge = None,
    memory_tokens: MemoryTokens = None,
    batch_size: BatchSize = 32,
    max_body: Annotated[int, typer.Option(min=1, help="Most bytes per request.")] = 8_000_000,
    max_texts: Annotated[int, typer.Option(min=1, help="Most texts per request.")] = 2048,
    max_chars: Annotated[int, typer.Option(min=1, help="Most characters per text.")] = 200_000,
    max_waiting: Annotated[
        int, typer.Option(min=1, help="Most texts that wait per model; more get status 429.")
    ] = 4096,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds that a request may take; at most 1,000,000.")
    ] = 60.0,
    keep_alive: Annotated[
        float, typer.Option(min=0.1, help="Seconds that an idle connection stays open.")
    ] = 5.0,
) -> None:
    """Serve encoders over HTTP, in the shapes of OpenAI's and other embedding APIs; search indexes.

    Several requests share the batches of a model. SIGTERM ends the server after everything that it
    accepted is answered; a second signal ends it at once. The log on standard error is JSON.

    \b
    Examples:
      llm2comp serve smollm2-135m-llm2comp
      llm2comp serve mine=runs/first/model minilm --port 9000
      llm2comp serve --index my-index
      llm2comp serve smollm2-135m-llm2comp --host 0.0.0.0 --tokens tokens.txt
    """
    from llm2comp.serving.settings import Limits, read_tokens, require_installed

    if not models and not index:
        raise typer.BadParameter("give MODEL, or --index DIR")
    require_installed()
    if index:
        from llm2comp.retrieval.store import require_lancedb

        require_lancedb()
    limits = Limits(max_body, max_texts, max_chars, max_waiting, timeout, keep_alive)
    accepted = () if tokens is None else read_tokens(tokens)  # before the imports
    preload("llm2comp.serving.server")
    from llm2comp.serving.server import serve as serve_models

    serve_models(
        models or [],
        index or [],
        host,
        port,
        accepted,
        limits,
        dtype=dtype,
        merge_threshold=merge,
        memory_tokens=memory_tokens,
        batch_size=batch_size,
    )
