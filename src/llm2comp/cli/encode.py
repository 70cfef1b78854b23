"""Commands that use an encoder: embed texts, search in them, or keep them in an index."""

import re
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from llm2comp import api
from llm2comp.cli.shared import (
    BatchSize,
    Dim,
    Dtype,
    MemoryTokens,
    Merge,
    ModelName,
    SearchPrecision,
    StoredPrecision,
    preload,
)
from llm2comp.errors import UserError, counted
from llm2comp.utils.choices import (
    Engine,
    IndexPrecision,
    OnBadRow,
    Precision,
    Prompt,
    SearchBy,
    VectorCount,
)
from llm2comp.utils.files import user_path

if TYPE_CHECKING:
    from llm2comp.inference.bulk.run import Encoded

LINE_ID = re.compile(r"-:\d+")
"""The id of a line of standard input."""
SHOWN = 10
"""Files that failed and are named on standard error. The file of the list has all of them."""


def encode(
    model: ModelName,
    file: Annotated[
        str,
        typer.Argument(
            help="Texts: one per line (.txt), or a column 'text' (.jsonl, .json, .csv, .parquet), "
            "also as .gz or .zst; - is standard input, one text per line. A folder, a pattern or a "
            "URL such as 's3://bucket/texts/*.parquet' is many files.",
            metavar="FILE",
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            help="File to write: .npy, .npz, or .parquet with columns text and embedding; for many "
            "files a folder, which gets one .parquet file for each."
        ),
    ],
    batch_size: BatchSize = 32,
    prompt: Annotated[
        Prompt | None,
        typer.Option(help="Use the encoder's prompt for queries or documents; default: no prompt."),
    ] = None,
    dtype: Dtype = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of processes; they share the threads. Use it for long files. Default: 1; "
            "with Ray one per GPU, or one per machine without GPUs.",
        ),
    ] = None,
    merge: Merge = None,
    memory_tokens: MemoryTokens = None,
    dim: Dim = None,
    precision: StoredPrecision = "float32",
    engine: Annotated[
        Engine | None,
        typer.Option(
            help="Encode many files on this machine, or on a cluster of Ray; default: local."
        ),
    ] = None,
    keep: Annotated[
        str,
        typer.Option(
            metavar="COLUMNS",
            help="Columns of many files that stay beside the embedding: id, text or id,text.",
        ),
    ] = "",
    on_bad_row: Annotated[
        OnBadRow | None,
        typer.Option(
            help="A bad row of many files fails its file (the default), or is left out and listed."
        ),
    ] = None,
) -> None:
    """Write the embeddings of a file's texts, in the order of the file, or those of many files.

    An .npy file that exists is replaced, and so is a .npz or .parquet file of embeddings. The input
    and files of something else are not. Of many files, those that are encoded already are left out,
    so the same command continues one that was stopped. If files fail, the others go on; the command
    then lists those that failed, and exits with status 1.

    \b
    Examples:
      llm2comp encode smollm2-135m-llm2comp texts.txt --out embeddings.npy
      llm2comp encode runs/demo/model texts.jsonl --out embeddings.parquet --prompt document
      llm2comp encode smollm2-135m-llm2comp texts.txt --out merged.npy --merge 0.8
      llm2comp encode runs/nested/model texts.txt --out shorter.npy --memory-tokens 2
      llm2comp encode smollm2-135m-llm2comp texts.txt --out embeddings.npy --workers 4
      llm2comp encode runs/demo/model texts.txt --prompt document --precision int8 --out s.parquet
      cut -f 2 table.tsv | llm2comp encode smollm2-135m-llm2comp - --out embeddings.npy
      llm2comp encode runs/demo/model 'texts/*.jsonl' --out vectors --keep id,text
      llm2comp encode runs/demo/model 's3://b/texts/*.parquet' --engine ray --out s3://b/vectors
    """
    from llm2comp.inference.bulk.shards import is_pattern

    if engine is not None or is_pattern(file):
        if Path(out).suffix in (".npy", ".npz", ".parquet"):
            raise UserError(f"--out {out}: many files are written to a folder; name a folder")
        if engine != "ray":
            preload("llm2comp.inference.bulk.local_engine")
        done = api.encode_files(
            model,
            file,
            out,
            engine=engine or "local",
            keep=tuple(filter(None, keep.split(","))),
            prompt=prompt,
            batch_size=batch_size,
            workers=workers,
            dtype=dtype,
            merge_threshold=merge,
            memory_tokens=memory_tokens,
            dim=dim,
            precision=precision,
            on_bad_row=on_bad_row or "fail",
        )
        _report(done, out)
        return
    if keep:
        raise UserError("--keep is for many files; an output .parquet of one file keeps its texts")
    if on_bad_row:
        raise UserError(
            "--on-bad-row is for many files; row i of one file becomes row i of its output"
        )
    from llm2comp.data.text_files import require_texts
    from llm2comp.inference.embedding_files import require_writable

    require_writable(user_path(out), user_path(file), precision)
    require_texts(user_path(file))  # before the imports, which take seconds
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
        memory_tokens=memory_tokens,
        dim=dim,
        precision=precision,
    )
    typer.echo(f"{out}: {counted(rows, 'embedding')}")


def _report(done: "Encoded", out: str) -> None:
    """Print what was encoded, and exit with status 1 if files failed."""
    before = f", {done.unchanged:,} of them before" if done.unchanged else ""
    files = counted(done.files, "file is", "files are")
    typer.echo(f"{out}: {counted(done.rows, 'embedding')}; {files} encoded{before}")
    if done.skipped:
        typer.echo(
            f"llm2comp: {counted(done.skipped, 'bad row was', 'bad rows were')} left out; "
            f"{done.skipped_folder} lists {'it' if done.skipped == 1 else 'them'}",
            err=True,
        )
    for error in islice(done.failed.values(), SHOWN):
        typer.echo(f"llm2comp: {error}", err=True)
    if done.failed:
        them = "it" if len(done.failed) == 1 else "them"
        typer.echo(
            f"llm2comp: {counted(len(done.failed), 'file')} failed; {done.failed_file} lists "
            f"{them}; correct {them} and repeat the command",
            err=True,
        )
        raise typer.Exit(1)


def search(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL] TEXTS QUERY",
            help="TEXTS is the folder of an index, which names its encoder, or a file as `encode` "
            "takes it, with MODEL before it. QUERY is what to look for.",
        ),
    ],
    top_k: Annotated[int, typer.Option(min=1, help="Number of texts to show.")] = 5,
    dtype: Dtype = "auto",
    merge: Merge = None,
    memory_tokens: MemoryTokens = None,
    dim: Dim = None,
    precision: SearchPrecision = None,
    where: Annotated[
        str | None,
        typer.Option(
            metavar="CONDITION",
            help='Only texts of an index whose metadata meets this, in SQL: "year >= 2020".',
        ),
    ] = None,
    by: Annotated[
        SearchBy | None,
        typer.Option(help="Rank an index by vectors (the default), words (BM25), or both."),
    ] = None,
    vectors: Annotated[
        VectorCount | None,
        typer.Option(
            help="Compare texts of a file by one vector (the default), or by the k memory vectors "
            "with MaxSim. An index has its own."
        ),
    ] = None,
) -> None:
    """Show the texts of an index or of a file that are nearest to a query.

    `llm2comp index` makes an index. The texts of a file are encoded for each search, except those
    of a .parquet file that `encode --prompt document` wrote.

    \b
    Examples:
      llm2comp search my-index "how do whales breathe"
      llm2comp search my-index "how do whales breathe" --by hybrid --where "year >= 2020"
      llm2comp search smollm2-135m-llm2comp texts.txt "how do whales breathe"
      llm2comp search smollm2-135m-llm2comp texts.txt "Roman coins" --top-k 3 --merge 0.8
      llm2comp search smollm2-135m-llm2comp texts.txt "how do whales breathe" --precision binary
      llm2comp search smollm2-135m-llm2comp texts.txt "how do whales breathe" --vectors k
      llm2comp search runs/demo/model s.parquet "how do whales breathe"
      git log --format=%s | llm2comp search smollm2-135m-llm2comp - "fix a memory leak"
    """
    if len(names) not in (2, 3):
        raise typer.BadParameter("give DIR QUERY for an index, or MODEL FILE QUERY")
    *given, texts, query = names
    if len(given) == 0 or Path(texts).is_dir():
        if (merge, memory_tokens, dim, precision, vectors) != (None,) * 5:
            raise UserError(
                f"{texts}: --merge, --memory-tokens, --dim, --precision and --vectors are for "
                "files of texts"
            )
        _search_index(Path(texts), given, query, top_k, dtype, where, by or "vector")
        return
    if (where, by) != (None, None):
        raise UserError(f"{texts}: --where and --by are for an index; make one: llm2comp index")
    from llm2comp.data.text_files import require_texts

    require_texts(Path(texts))
    preload("llm2comp.inference.search", "llm2comp.inference.load")
    hits = api.search(
        given[0],
        texts,
        query,
        top_k=top_k,
        dtype=dtype,
        merge_threshold=merge,
        memory_tokens=memory_tokens,
        dim=dim,
        precision=precision,
        vectors=vectors,
    )
    for hit in hits:
        typer.echo(f"{hit.score:.3f}  {' '.join(hit.text.split())}")


def _search_index(
    folder: Path,
    model: list[str],
    query: str,
    top_k: int,
    dtype: Precision,
    where: str | None,
    by: SearchBy,
) -> None:
    from llm2comp.retrieval.store import has_index

    if not has_index(folder):  # before the imports, which take seconds
        raise UserError(
            f"{folder}: holds no index; make one with llm2comp index, or give MODEL FILE QUERY"
        )
    preload("llm2comp.retrieval.index")
    index = api.open_index(folder, *model, dtype=dtype)
    for hit in index.search(query, top_k, where=where, by=by):
        typer.echo(f"{hit.score:.3f}  {hit.id}  {' '.join(hit.text.split())}")


def index(
    model: ModelName,
    corpus: Annotated[
        str,
        typer.Argument(
            metavar="CORPUS",
            help="File, folder or pattern: one text per line (.txt), or columns 'text', maybe "
            "'id', and metadata (.jsonl, .json, .csv, .parquet); - is standard input.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the index.")],
    batch_size: BatchSize = 32,
    dtype: Dtype = "auto",
    memory_tokens: MemoryTokens = None,
    dim: Dim = None,
    precision: Annotated[
        IndexPrecision | None,
        typer.Option(
            help="Compare vectors in this first, and rank the best by their floats (float32, int8, "
            "binary); or store the k vectors in this (float16, int8, binary). Default: int8, or as "
            "in the index."
        ),
    ] = None,
    vectors: Annotated[
        VectorCount | None,
        typer.Option(
            help="Store one vector per text, or also the k memory vectors, by whose MaxSim the "
            "nearest texts are ranked; default: one, or as in the index."
        ),
    ] = None,
) -> None:
    """Make an index of texts that lasts, or bring one up to date; `search DIR QUERY` reads it.

    New ids are added, and known ids are replaced if the text or its metadata has changed. Texts
    that are no longer in the corpus stay. The same command continues one that was stopped.

    \b
    Examples:
      llm2comp index smollm2-135m-llm2comp texts.jsonl --out my-index
      llm2comp index smollm2-135m-llm2comp notes/ --out my-index
      llm2comp index smollm2-135m-llm2comp texts.jsonl --out my-index --vectors k
      llm2comp search my-index "how do whales breathe"
    """
    from llm2comp.retrieval.store import require_lancedb

    require_lancedb()  # before the imports, which take seconds
    preload("llm2comp.retrieval.index")
    from llm2comp.retrieval.index import build

    made, done = build(
        model,
        corpus,
        out,
        batch_size=batch_size,
        dtype=dtype,
        dim=dim,
        precision=precision,
        memory_tokens=memory_tokens,
        vectors=vectors,
    )
    typer.echo(
        f"{out}: {counted(len(made), 'text')} ({done.added:,} added, {done.updated:,} updated, "
        f"{done.unchanged:,} unchanged)"
    )


class WithIds(TyperCommand):
    """A command whose last arguments are ids, also those of lines of standard input, as `-:1`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take such ids for arguments, and all else that begins with `-` for options."""
        ids = [one for one in args if LINE_ID.fullmatch(one)]
        if ids and "--" not in args:
            args = [*(one for one in args if one not in ids), "--", *ids]
        return super().parse_args(ctx, args)


def delete(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of an index.")],
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of the texts.")],
) -> None:
    """Delete texts from an index by their ids.

    \b
    Examples:
      llm2comp delete my-index whale-1 whale-2
      llm2comp delete my-index texts.txt:3
      llm2comp delete my-index -:1
    """
    from llm2comp.data.text_files import require_id
    from llm2comp.retrieval.store import Store, writing

    store = Store(folder)
    with writing(folder):
        gone = store.delete([require_id(one, "delete") for one in ids])
    left = counted(len(store), "text is", "texts are")
    typer.echo(f"{folder}: deleted {gone:,} of {len(set(ids)):,}; {left} left")
