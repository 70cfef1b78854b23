"""Files that fsspec reaches: on this machine, in S3, in GCS, and wherever else it has a client."""

import functools
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from llm2comp.errors import UserError, one_line
from llm2comp.utils.files import partial_name, removed_at_exit

PARTIAL = re.compile(r"\..*\.[0-9a-f]{8}\.part")
"""The name of a file that is being written."""


def locate(url: str) -> tuple[AbstractFileSystem, str]:
    """Return the file system of a path or URL, and the path in it.

    Raises:
        UserError: if fsspec knows no such file system, or its client is not installed.
    """
    try:
        fs, path = fsspec.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise UserError(f"{url}: cannot be used: {one_line(error)}") from error
    return fs, path


def local_path(url: str) -> Path | None:
    """Return the path of a file of this machine, or None."""
    fs, path = locate(url)
    return Path(path) if isinstance(fs, LocalFileSystem) else None


@contextmanager
def local_copy(url: str) -> Iterator[Path]:
    """Yield a file of this machine with the content of a file anywhere; a local file is itself."""
    local = local_path(url)
    if local is not None:
        yield local
        return
    fs, path = locate(url)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.rpartition("/")[2]
        fs.get_file(path, str(copy))
        yield copy


@contextmanager
def new_file(url: str) -> Iterator[IO[bytes]]:
    """Yield a stream into a partial file, which gets its name if the block succeeds.

    If anything stops the block, what had that name stays as it was.
    """
    fs, path = locate(url)
    parent, _, name = path.rpartition("/")
    partial = f"{parent}/{partial_name(name)}"
    fs.makedirs(parent, exist_ok=True)
    with removed_at_exit(functools.partial(_remove, fs, partial)):
        with fs.open(partial, "wb") as stream:
            yield stream
        fs.mv(partial, path)


def remove_partials(url: str) -> None:
    """Remove the partial files in a folder, which processes that were killed have left."""
    fs, path = locate(url)
    for file in _all_files(fs, path):
        if PARTIAL.fullmatch(file.rpartition("/")[2]):
            _remove(fs, file)


def files_below(url: str) -> set[str]:
    """Return the paths, relative to a folder, of all files in it; none if it is not there."""
    fs, path = locate(url)
    return {file.removeprefix(f"{path.rstrip('/')}/") for file in _all_files(fs, path)}


def _all_files(fs: AbstractFileSystem, path: str) -> list[str]:
    fs.invalidate_cache()
    found: Any = fs.find(path) if fs.isdir(path) else []
    return list(found)


def _remove(fs: AbstractFileSystem, path: str) -> None:
    with suppress(OSError):  # it has its final name, or was never made
        fs.rm_file(path)
