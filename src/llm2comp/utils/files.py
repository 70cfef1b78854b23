"""The cache folder, and files and folders that are written whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs


def cache_dir() -> Path:
    """Return the cache folder: `$LLM2COMP_CACHE`, or else the platform's user cache."""
    configured = os.environ.get("LLM2COMP_CACHE")
    return Path(configured).expanduser() if configured else platformdirs.user_cache_path("llm2comp")


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`, and move it to `path` if the block succeeds.

    If anything stops the block (an exception, a full disk, Ctrl-C), `path` stays as it was and
    the partial folder is removed.

    Args:
        path: the folder to write. One that exists is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{_shortened(path.name)}.{uuid.uuid4().hex[:8]}")
    partial.mkdir()
    try:
        yield partial
        _follow_umask(partial)
        if path.exists():
            shutil.rmtree(path)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield the name of a new file beside `path`, and move it to `path` if the block succeeds.

    If anything stops the block, `path` stays as it was and the partial file is removed.

    Args:
        path: the file to write. One that exists is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{_shortened(path.name)}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _follow_umask(folder: Path) -> None:
    """Give the files of a new folder the mode that the user asked for.

    The library of safetensors makes files that nobody else can read.
    """
    mode = folder.stat().st_mode & 0o666  # the folder was made with the umask
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(mode)


def _shortened(name: str) -> str:
    """Return the start of a file name.

    File systems allow a name of 255 bytes. The name of a partial file is longer than the final
    one, so the final name must be cut.
    """
    return os.fsencode(name)[:100].decode("utf-8", errors="ignore")
