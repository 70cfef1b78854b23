"""The files of texts that a pattern names, and the files of vectors that they become."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fsspec import AbstractFileSystem
from fsspec.utils import glob_translate

from llm2comp.data import files
from llm2comp.errors import UserError, one_line
from llm2comp.inference.bulk.locations import locate

MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Shard:
    """A file of texts, which becomes one file of vectors.

    Attributes:
        name: of the file of texts, as the user spells it.
        url: of the file, the same on all machines.
        version: a hash of what the file system says of the file, such as its size, its time and
            its ETag. It changes when the file changes.
        output: name of the file of vectors, relative to the folder of all of them.
    """

    name: str
    url: str
    version: str
    output: str


@dataclass(frozen=True)
class Result:
    """What became of a file of texts.

    Attributes:
        name: of the file of texts.
        rows: that were encoded.
        error: in one line; empty if there was none.
        again: whether the file may succeed at another try. A mistake in it does not go away.
        stop: whether all other files would fail too.
        skipped: bad rows that were left out.
    """

    name: str
    rows: int = 0
    error: str = ""
    again: bool = False
    stop: bool = False
    skipped: int = 0


def is_pattern(name: str) -> bool:
    """Return whether a name stands for many files: a pattern, a folder or a URL."""
    path = Path(name).expanduser()
    return path.is_dir() or (not path.exists() and ("://" in name or bool(MAGIC.search(name))))


def find_shards(pattern: str) -> list[Shard]:
    """Return the files that a pattern names, in the order of their names.

    Names that begin with `.` or `_` are left out, because tools write marks such as `_SUCCESS`
    there.

    Args:
        pattern: a file, a folder, or a pattern with `*`, `?`, `[...]` or `**`; a path or a URL that
            fsspec takes, such as `s3://bucket/texts/*.parquet`.

    Raises:
        UserError: if there is no such file, one cannot be read by its ending, two would become
            files of one name, or the file system cannot be used.
    """
    fs, path = locate(pattern)
    try:
        base, found = _matches(fs, path, pattern)
        below = locate(base or ".")[1].rstrip("/") + "/"
        names = sorted(one.removeprefix(below) for one in found)
        shards = [
            Shard(base + name, fs.unstrip_protocol(below + name), fs.ukey(below + name), _out(name))
            for name in names
            if len(names) == 1 or not _is_hidden(name)
        ]
    except UserError:
        raise
    except Exception as error:  # each client of a file system has errors of its own
        raise UserError(f"{pattern}: cannot be listed: {one_line(error)}") from error
    if not shards:
        raise UserError(f"{pattern}: there is no such file, and no file that it matches")
    for shard in shards:
        if files.kind_of(Path(shard.name)) not in files.READERS:
            raise UserError(
                f"{shard.name}: cannot be read by its ending; name files of "
                f"{', '.join(files.READERS)} alone, by a pattern such as {base}*.jsonl"
            )
    _require_distinct(shards)
    return shards


def would_find(pattern: str, url: str) -> bool:
    """Return whether `find_shards` would find a file of this URL, which need not be there."""
    fs, path = locate(pattern)
    other, file = locate(url)
    if fs != other:
        return False
    if fs.isdir(path):
        below = path.rstrip("/") + "/"
        matches = file.startswith(below)
    else:
        below = _fixed(MAGIC.split(path)[0])
        matches = re.match(glob_translate(path), file) is not None
    return matches and not _is_hidden(file.removeprefix(below))


def _is_hidden(name: str) -> bool:
    return any(part[0] in "._" for part in name.split("/"))


def _matches(fs: AbstractFileSystem, path: str, pattern: str) -> tuple[str, Iterable[str]]:
    """Return the fixed part of a pattern, as the user spells it, and the files that it matches."""
    if fs.isfile(path):
        return _fixed(pattern), [path]
    if fs.isdir(path):
        return pattern.rstrip("/") + "/", fs.find(path)
    found = fs.glob(path, detail=True) if MAGIC.search(path) else {}
    return _fixed(MAGIC.split(pattern)[0]), [
        one for one, about in found.items() if about["type"] == "file"
    ]


def _fixed(start: str) -> str:
    head, slash, _ = start.rpartition("/")
    return head + slash


def _out(name: str) -> str:
    """Return the name of the file of vectors for the file of texts of this name."""
    kind = files.kind_of(Path(name))
    stem = name[: name.lower().rindex(kind)] if kind in files.READERS else name
    return f"{stem}.parquet"


def _require_distinct(shards: Iterable[Shard]) -> None:
    known: dict[str, Shard] = {}
    for shard in shards:
        other = known.setdefault(shard.output, shard)
        if other is not shard:
            raise UserError(
                f"{other.name} and {shard.name} would both become {shard.output}; rename one, or "
                "encode them into two folders"
            )
