"""The files of a local source: one file, a folder, or a pattern such as `data/*.jsonl.gz`."""

import glob
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from datasets.data_files import (
    FILES_TO_IGNORE,
    DataFilesList,
    EmptyDatasetError,
    get_data_patterns,
)

from llm2comp.data import files
from llm2comp.data.formats import saved
from llm2comp.errors import UserError, counted
from llm2comp.utils.standard_input import STANDARD_INPUT

logger = logging.getLogger("llm2comp")

PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})(.*)")
"""The name of a part in the way of `datasets`, such as `train-00000-of-00008.parquet`."""


def local_files(name: str, split: str | None, *, announced: bool = False) -> list[Path] | None:
    """Return the files of a source in the order of their names, or None if it is not local.

    Args:
        name: standard input, a file, which may be missing, a folder of files, a folder of
            `save_to_disk`, or a pattern with `*`, `?` or `**`.
        split: of a folder whose files are named after splits, such as `data/train-*.parquet`, the
            files of this split are taken. If they are named after none, all are `train`. None takes
            all files, whatever their names: a corpus has no splits.
        announced: whether the log says so if they are not all files of the folder.

    Raises:
        UserError: if there is no file to read, the files are of several kinds, or parts of a
            split are missing.
    """
    path = Path(name).expanduser()
    if path.is_dir() and not saved.is_saved(path):
        if split is None:
            every = found = _readable(_all_in(path), str(path))
        else:
            every, found = _matching(path, ["**"]), _readable(_of_split(path, split), str(path))
        count = sum(files.kind_of(one) in files.READERS for one in every)
        if announced and len(found) < count:
            read = counted(len(found), "file")
            logger.info("%s: reads the %s of split %s of %d", name, read, split, count)
    elif path == STANDARD_INPUT or path.exists():
        return [path]
    elif glob.has_magic(name):
        # `Path.glob` takes no absolute pattern.
        matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
        found = _readable(map(Path, matches), name)
    else:
        return [path] if files.kind_of(path) in files.READERS else None
    require_all_parts(map(str, found), name)
    return found


def _all_in(folder: Path) -> list[Path]:
    """Return the files in a folder, whatever their names, without hidden ones.

    Settings that datasets and models of the hub have beside their files are left out.
    """
    return [
        path
        for path in sorted(folder.rglob("*"), key=str)
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not _is_settings(path)
    ]


def _is_settings(path: Path) -> bool:
    """Return whether a file has the name of settings of the hub, and no rows with a text."""
    if path.name not in FILES_TO_IGNORE or not path.is_file():
        return False
    if files.kind_of(path) not in files.READERS:
        return True
    _, first = next(files.read(path), (0, None))
    return not isinstance(first, Mapping) or not first.keys() & {"text", "anchor"}


def _of_split(folder: Path, split: str) -> list[Path]:
    """Return the files of a split, which `datasets` tells by their names."""
    try:
        found = get_data_patterns(glob.escape(str(folder)))
    except EmptyDatasetError:
        return []
    patterns = {str(key): value for key, value in found.items()}
    if split not in patterns:
        splits = ", ".join(patterns)
        raise UserError(f"{folder}: has no files of split {split!r}, only of {splits}; set split")
    return _matching(folder, patterns[split])


def _matching(folder: Path, patterns: list[str]) -> list[Path]:
    """Return the files in a folder that patterns match, without hidden ones."""
    try:
        found = DataFilesList.from_patterns(patterns, base_path=glob.escape(str(folder)))
    except FileNotFoundError:  # nothing matches
        return []
    return [Path(one) for one in sorted(set(found))]


def _readable(paths: Iterable[Path], name: str) -> list[Path]:
    """Return the files that can be read, which must be of one kind."""
    found = [path for path in paths if path.is_file() and files.kind_of(path) in files.READERS]
    kinds = Counter(map(files.kind_of, found))
    if not found:
        raise UserError(f"{name}: has no file that can be read ({', '.join(files.READERS)})")
    if len(kinds) > 1:
        shown = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        raise UserError(
            f"{name}: has files of several kinds ({shown}); name those of one kind by a pattern, "
            f"such as {name.rstrip('/')}/*{next(iter(kinds))}"
        )
    return found


def require_all_parts(names: Iterable[str], where: str) -> None:
    """Check that all parts are there, because a download that was stopped leaves some out.

    Args:
        names: the names of files. Other names than `train-00000-of-00008.parquet` say nothing.
        where: the source, for the message.

    Raises:
        UserError: if parts are missing.
    """
    parts = Counter(
        (match[1], int(match[3])) for match in map(PART.fullmatch, set(names)) if match is not None
    )
    for (first, wanted), count in parts.items():
        if count < wanted:
            raise UserError(
                f"{where}: has {count} of the {wanted} parts of {Path(first).name}; download the "
                "others too"
            )
