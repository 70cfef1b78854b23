"""The functions of the Python API that make and open an index of texts that lasts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llm2comp.utils.files import user_path

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from llm2comp.retrieval.index import Index
    from llm2comp.utils.choices import IndexPrecision, Precision, VectorCount


def index(
    model: str | Path | SentenceTransformer, corpus: str | Path, out: str | Path, *,
    batch_size: int = 32, dtype: Precision = "auto", dim: int | None = None,
    precision: IndexPrecision | None = None, memory_tokens: int | None = None,
    vectors: VectorCount | None = None,
) -> Index:  # fmt: skip
    """Make an index of a corpus, or bring one that is there up to date; it needs LanceDB.

    Texts with new ids are added, texts with known ids are replaced if they or their metadata have
    changed, and the others are left as they are. So the same call continues one that was stopped.

    Args:
        model: name or folder that `load` takes, or a loaded model. The texts get its document
            prompt.
        corpus: file, folder or pattern of `.txt` (one text per line), `.jsonl`, `.csv` or
            `.parquet` files (column `text`, maybe `id`, and metadata), or `-`. The id of a row
            without one is its file and line.
        out: folder of the index.
        batch_size: as in `encode`.
        dtype: as in `load`; only if the model is given by name.
        dim: as in `encode`; an index that is there keeps its own. Only for one vector per text.
        precision: in which vectors are compared with a query first: `"int8"` (the default),
            `"binary"` or `"float32"`. The best are then ranked by their floats. With k vectors, how
            these are stored: `"int8"` (the default), `"float16"` or `"binary"`.
        memory_tokens: as in `load`; only if the model is given by name. An index that is there
            keeps its own number, and a search uses it.
        vectors: `"k"` also stores the k memory vectors of each text. The texts that are nearest by
            the one vector are then ranked by MaxSim. `None` is one, or as in the index.

    Raises:
        UserError: if the corpus has a bad row, or `out` holds something else, or an index of
            another encoder, `dim`, `precision` or `vectors`; if the encoder has no k vectors.

    Examples:
        >>> index = llm2comp.index("minilm", "texts.txt", "my-index")
        >>> hits = index.search("animals of the sea", top_k=2, by="hybrid")
        >>> len(hits)
        2
    """
    from llm2comp.errors import UserError
    from llm2comp.retrieval.index import build

    if isinstance(model, Path):
        model = str(model)
    if not isinstance(model, str) and (dtype, memory_tokens) != ("auto", None):
        raise UserError("dtype and memory_tokens are for a model given by name; use load()")
    made, _ = build(
        model,
        str(corpus),
        user_path(out),
        batch_size=batch_size,
        dtype=dtype,
        dim=dim,
        precision=precision,
        memory_tokens=memory_tokens,
        vectors=vectors,
    )
    return made


def open_index(
    folder: str | Path, model: str | Path | SentenceTransformer | None = None, *,
    dtype: Precision = "auto",
) -> Index:  # fmt: skip
    """Open an index, to search in it, and to add, replace and delete texts.

    Args:
        folder: of the index.
        model: as in `index`; `None` is the one that made the index.
        dtype: as in `load`.

    Raises:
        UserError: if the folder holds no index.

    Examples:
        >>> llm2comp.index("minilm", "texts.txt", "my-index")
        Index('my-index', 8 texts)
        >>> index = llm2comp.open_index("my-index")
        >>> index.add([{"id": "whale-1", "text": "Whales sing.", "year": 1970}])
        Changes(added=1, updated=0, unchanged=0)
        >>> [hit.id for hit in index.search("songs of whales", where="year < 1980")]
        ['whale-1']
        >>> index.delete("whale-1")
        1
    """
    from llm2comp.retrieval.index import Index

    return Index(user_path(folder), str(model) if isinstance(model, Path) else model, dtype)
