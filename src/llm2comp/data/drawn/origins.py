"""What the files and data sets were like from which rows are drawn, so that a change is noticed."""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm2comp.data import catalog, hub
from llm2comp.data.formats import parts
from llm2comp.errors import UserError, one_line
from llm2comp.recipe_parts import DataSource, dataset_names

Origins = dict[str, dict[str, Any]]
"""By the name of a source (`dataset_names`) what is known of it: `bytes`, `modified` (nanoseconds),
`sha256` and the number of `files` of local files, `package` and `sha256` of a packaged source,
`commit` of a data set of the hub."""


def record(data: Sequence[DataSource], known: Mapping[str, Mapping[str, Any]]) -> Origins:
    """Return what the sources are like now.

    Args:
        data: the sources.
        known: an earlier record. A file with its size and time is not read again, and a data set
            of the hub is not asked for again.
    """
    named = zip(dataset_names(data), data, strict=True)
    return {name: _origin(one, known.get(name, {})) for name, one in named}


def changed(before: Mapping[str, Mapping[str, Any]], now: Origins) -> list[str]:
    """Return the names of the sources in both records whose content differs."""
    return [
        name
        for name, origin in now.items()
        if name in before and _content(before[name]) != _content(origin)
    ]


def write(file: Path, origins: Origins) -> None:
    """Write a record as JSON."""
    file.write_text(json.dumps(origins, indent=1) + "\n", encoding="utf-8")


def read(file: Path) -> Origins:
    """Return a record; an empty one if there is no such file.

    Raises:
        UserError: if the file is damaged.
    """
    if not file.exists():
        return {}
    try:
        origins: Origins = json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{file} is damaged ({one_line(error)}); remove it") from error
    return origins


def _origin(source: DataSource, known: Mapping[str, Any]) -> dict[str, Any]:
    name = source.source
    if name in catalog.names():
        entry = catalog.entry(name)
        return {"package": f"{entry.package} {entry.version}", "sha256": entry.archive_sha256}
    if "commit" in known:
        return dict(known)
    try:
        local = parts.local_files(name, source.split)
    except UserError:  # it is gone, and the rows that were drawn from it do not need it
        return {}
    if local is None:
        if known:
            return {}
        repository = name.partition(":")[0]
        return {"commit": hub.locate_dataset(repository, source.revision).commit}
    found = sorted(one for path in local for one in _all_files(path))
    if not found:
        return {}
    status = [path.stat() for path in found]
    stamp = {
        "bytes": sum(one.st_size for one in status),
        "modified": max(one.st_mtime_ns for one in status),
    }
    if len(found) > 1:
        stamp["files"] = len(found)
    if stamp.items() <= known.items():
        return dict(known)
    sums = [
        _sha256(path.resolve(), one.st_size, one.st_mtime_ns)
        for path, one in zip(found, status, strict=True)
    ]
    joined = hashlib.sha256("\n".join(sums).encode()).hexdigest()
    return stamp | {"sha256": joined if len(sums) > 1 else sums[0]}


def _all_files(path: Path) -> list[Path]:
    """Return a file, or the files of a folder of `save_to_disk`; none for standard input."""
    if path.is_dir():
        return [one for one in path.rglob("*") if one.is_file()]
    return [path] if path.is_file() else []


@functools.cache
def _sha256(path: Path, _: int, __: int) -> str:
    """Return the sha256 of a file, once for each size and time of it."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _content(origin: Mapping[str, Any]) -> dict[str, Any]:
    """Return what says that a source is the same; the time of a file changes when it is copied."""
    return {key: value for key, value in origin.items() if key != "modified"}
