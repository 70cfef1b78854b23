"""Commands that use an encoder: vectors of a file, nearest texts of a file."""

from pathlib import Path
from typing import Annotated

import typer

from llm2comp.commands.shared import Dtype, Merge, Prompt, importing


def encode(
    model: Annotated[str, typer.Argument(help="Encoder folder, released name or hub id.")],
    file: Annotated[
        Path,
        typer.Argument(help="A text a line (.txt), or a column text (.jsonl, .csv, .parquet)."),
    ],
    out: Annotated[Path, typer.Option(help="Vectors: .npy, or .parquet with the texts.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Texts of 64 tokens at once.")] = 32,
    prompt: Annotated[
        Prompt | None, typer.Option(help="Encode as queries or documents; else as neither.")
    ] = None,
    dtype: Dtype = "auto",
    workers: Annotated[
        int, typer.Option(min=1, help="Processes that divide the threads, for long files.")
    ] = 1,
    merge: Merge = None,
) -> None:
    """Write the vectors of a file's texts, in order.

    \b
    Examples:
      llm2comp encode smollm2-135m-llm2comp texts.txt --out vectors.npy
      llm2comp encode runs/demo/model texts.jsonl --out vectors.parquet --prompt document
      llm2comp encode smollm2-135m-llm2comp texts.txt --out merged.npy --merge 0.8
      llm2comp encode smollm2-135m-llm2comp texts.txt --out vectors.npy --workers 4
    """
    from llm2comp.text_files import require_texts
    from llm2comp.vector_files import require_writable

    require_writable(out)
    require_texts(file)
    with importing():
        from llm2comp import precision
        from llm2comp.encode import encode_file
    encoder = precision.load_model(model, dtype, merge)
    rows = encode_file(encoder, file, out, batch_size, prompt, workers)
    typer.echo(f"{out}: {rows:,} vectors")


def search(
    model: Annotated[str, typer.Argument(help="Encoder folder, released name or hub id.")],
    file: Annotated[
        Path,
        typer.Argument(help="A text a line (.txt), or a column text (.jsonl, .csv, .parquet)."),
    ],
    query: Annotated[str, typer.Argument(help="What to look for.")],
    top_k: Annotated[int, typer.Option(min=1, help="Texts to show.")] = 5,
    dtype: Dtype = "auto",
    merge: Merge = None,
) -> None:
    """Show the texts of a file nearest to a query.

    \b
    Examples:
      llm2comp search smollm2-135m-llm2comp texts.txt "how do whales breathe"
      llm2comp search smollm2-135m-llm2comp texts.txt "Roman coins" --top-k 3 --merge 0.8
    """
    from llm2comp.text_files import require_texts

    require_texts(file)
    with importing():
        from llm2comp import precision
        from llm2comp.search import search as nearest
    encoder = precision.load_model(model, dtype, merge)
    for hit in nearest(encoder, file, query, top_k=top_k):
        typer.echo(f"{hit.score:.3f}  {' '.join(hit.text.split())}")
