"""Where downloads and converted weights live, and how anything is written whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs


def cache_dir() -> Path:
    """Return the cache folder: ``$LLM2COMP_CACHE``, else the platform's user cache."""
    configured = os.environ.get("LLM2COMP_CACHE")
    return Path(configured).expanduser() if configured else platformdirs.user_cache_path("llm2comp")


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path`` that replaces it only if the block succeeds.

    Whatever stops the block (an exception, a full disk, Ctrl-C), ``path`` is
    left as it was and the partial folder is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    partial.chmod(0o755)  # mkdtemp makes 0o700, which would hide a shared artefact
    try:
        yield partial
        if path.exists():
            shutil.rmtree(path)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a file name beside ``path`` that replaces it only if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
