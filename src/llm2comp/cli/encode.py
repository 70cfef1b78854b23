"""Commands that use an encoder: embed the texts of a file, or search in them."""

from pathlib import Path
from typing import Annotated

import typer

from llm2comp import api
from llm2comp.cli.shared import (
    BatchSize,
    Dim,
    Dtype,
    Merge,
    ModelName,
    SearchPrecision,
    StoredPrecision,
    TextFile,
    preload,
)
from llm2comp.utils.choices import Prompt


def encode(
    model: ModelName,
    file: TextFile,
    out: Annotated[
        Path,
        typer.Option(
            help="File to write: .npy, .npz, or .parquet with columns text and embedding."
        ),
    ],
    batch_size: BatchSize = 32,
    prompt: Annotated[
        Prompt | None,
        typer.Option(help="Use the encoder's prompt for queries or documents; default: no prompt."),
    ] = None,
    dtype: Dtype = "auto",
    workers: Annotated[
        int,
        typer.Option(
            min=1, help="Number of processes; they share the threads. Use it for long files."
        ),
    ] = 1,
    merge: Merge = None,
    dim: Dim = None,
    precision: StoredPrecision = "float32",
) -> None:
    """Write the embeddings of a file's texts, in the order of the file.

    An .npy file that exists is replaced, and so is a .npz or .parquet file of embeddings. The input
    and files of something else are not.

    \b
    Examples:
      llm2comp encode smollm2-135m-llm2comp texts.txt --out embeddings.npy
      llm2comp encode runs/demo/model texts.jsonl --out embeddings.parquet --prompt document
      llm2comp encode smollm2-135m-llm2comp texts.txt --out merged.npy --merge 0.8
      llm2comp encode smollm2-135m-llm2comp texts.txt --out embeddings.npy --workers 4
      llm2comp encode runs/demo/model texts.txt --prompt document --precision int8 --out s.parquet
      cut -f 2 table.tsv | llm2comp encode smollm2-135m-llm2comp - --out embeddings.npy
    """
    from llm2comp.data.text_files import require_texts
    from llm2comp.inference.embedding_files import require_writable

    require_writable(out, file, precision)
    require_texts(file)  # before the imports, which take seconds
    preload("llm2comp.inference.encode_file", "llm2comp.inference.load")
    rows = api.encode_file(
        model,
        file,
        out,
        prompt=prompt,
        batch_size=batch_size,
        workers=workers,
        dtype=dtype,
        merge_threshold=merge,
        dim=dim,
        precision=precision,
    )
    typer.echo(f"{out}: {rows:,} embeddings")


def search(
    model: ModelName,
    file: TextFile,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What to look for.")],
    top_k: Annotated[int, typer.Option(min=1, help="Number of texts to show.")] = 5,
    dtype: Dtype = "auto",
    merge: Merge = None,
    dim: Dim = None,
    precision: SearchPrecision = None,
) -> None:
    """Show the texts of a file that are nearest to a query.

    A .parquet file that `encode --prompt document` wrote is not encoded again.

    \b
    Examples:
      llm2comp search smollm2-135m-llm2comp texts.txt "how do whales breathe"
      llm2comp search smollm2-135m-llm2comp texts.txt "Roman coins" --top-k 3 --merge 0.8
      llm2comp search smollm2-135m-llm2comp texts.txt "how do whales breathe" --precision binary
      llm2comp search runs/demo/model s.parquet "how do whales breathe"
      git log --format=%s | llm2comp search smollm2-135m-llm2comp - "fix a memory leak"
    """
    from llm2comp.data.text_files import require_texts

    require_texts(file)
    preload("llm2comp.inference.search", "llm2comp.inference.load")
    hits = api.search(
        model,
        file,
        query,
        top_k=top_k,
        dtype=dtype,
        merge_threshold=merge,
        dim=dim,
        precision=precision,
    )
    for hit in hits:
        typer.echo(f"{hit.score:.3f}  {' '.join(hit.text.split())}")
