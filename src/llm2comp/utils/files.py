"""The cache folder, shipped files, and files and folders that are written whole or not at all."""

import atexit
import functools
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs

from llm2comp.errors import UserError


def cache_dir() -> Path:
    """Return the cache folder: `$LLM2COMP_CACHE`, or else the platform's user cache."""
    configured = os.environ.get("LLM2COMP_CACHE")
    return Path(configured).expanduser() if configured else platformdirs.user_cache_path("llm2comp")


def user_path(name: str | Path) -> Path:
    """Return a path as the user means it: `~` at its beginning is the home folder.

    A shell puts the home folder into `--out ~/runs`, and not into `--out=~/runs`. Of users that do
    not exist (`~nobody/runs`), the path stays as it is, as in a shell.
    """
    return Path(os.path.expanduser(name))  # noqa: PTH111 (that of Path raises a RuntimeError)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`, and move it to `path` if the block succeeds.

    If anything stops the block (an exception, a full disk, a signal), `path` stays as it was and
    the partial folder is removed. A folder that is replaced is moved aside, and removed only when
    the new one is in its place. If the process is killed (`kill -9`) between the two, both lie
    beside `path`.

    Args:
        path: the folder to write. One that exists is replaced; a link to it stays a link.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, old = _partial(path), _partial(path)

    def clean_up() -> None:
        if partial.exists() and not path.exists():  # it was stopped between the two moves
            with suppress(FileNotFoundError):
                old.rename(path)
        for folder in (partial, old):
            shutil.rmtree(folder, ignore_errors=True)

    with removed_at_exit(clean_up):
        partial.mkdir()
        yield partial
        _follow_umask(partial)
        if path.is_dir():
            path.rename(old)
        partial.rename(path)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield the name of a new file beside `path`, and move it to `path` if the block succeeds.

    If anything stops the block, `path` stays as it was and the partial file is removed.

    Args:
        path: the file to write. One that exists is replaced; a link to it stays a link.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    with removed_at_exit(functools.partial(partial.unlink, missing_ok=True)):
        yield partial
        partial.replace(path)


@contextmanager
def removed_at_exit(remove: Callable[[], object]) -> Iterator[None]:
    """Call a function after the block, and also if the process ends by a signal within it.

    The command line runs the exit functions when a signal ends it.
    """
    atexit.register(remove)
    try:
        yield
    finally:
        remove()  # first: a signal within it calls it again
        atexit.unregister(remove)


def link_weights(source: str, target: str) -> None:
    """Copy a file as `shutil.copy2` does, but let the copy of a weights file be the file itself.

    Weights are large, and nothing here changes a file of them. Small files, which people edit, are
    copied, and so is everything where the file system has no hard links.

    Args:
        source: the file.
        target: the file to make.
    """
    if Path(source).suffix == ".safetensors":
        with suppress(OSError):
            os.link(source, target)
            return
    shutil.copy2(source, target)


def _follow_umask(folder: Path) -> None:
    """Give the files of a new folder the mode that the user asked for.

    The library of safetensors makes files that nobody else can read. A file that is in another
    folder too has its mode already.
    """
    mode = folder.stat().st_mode & 0o666  # the folder was made with the umask
    for file in folder.rglob("*"):
        if file.is_file() and file.stat().st_nlink == 1:
            file.chmod(mode)


def _partial(path: Path) -> Path:
    """Return a path beside `path` that does not exist."""
    return path.with_name(partial_name(path.name))


def partial_name(name: str) -> str:
    """Return a name that no other file has, for a file that will be called `name`.

    File systems allow a name of 255 bytes. The name of a partial file is longer than the final
    one, so the final name must be cut.
    """
    start = os.fsencode(name)[:100].decode("utf-8", errors="ignore")
    return f".{start}.{uuid.uuid4().hex[:8]}.part"


def require_file(path: Path, inputs: Iterable[Path] = ()) -> None:
    """Check that a file can be written, before the work begins.

    Args:
        path: the file. It may exist.
        inputs: files that the work reads; `path` must be none of them, by whatever name.

    Raises:
        UserError: if it cannot be written, is no plain file, or is an input.
    """
    if str(path) == "-":
        raise UserError("--out -: name a file; results are not written to standard output")
    if path.is_dir():
        raise UserError(f"--out {path}: it is a folder; name a file")
    if path.exists() and not path.is_file():
        raise UserError(f"--out {path}: it is a device or a pipe; name a file")
    for file in inputs:
        if path.exists() and file.exists() and path.samefile(file):
            raise UserError(f"--out {path}: it is the input {file}; name another file")
    _require_writable(path, path.resolve().parent)


def require_folder(path: Path) -> None:
    """Check that a folder can be written, before the work begins.

    Args:
        path: the folder. It may exist.

    Raises:
        UserError: if it cannot be written, or is a file.
    """
    _require_writable(path, path.resolve())


def _require_writable(path: Path, folder: Path) -> None:
    """Check that `folder`, or else the folder in which it can be made, can be written."""
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"{path} cannot be written: {folder} is a file and not a folder")
    try:
        tempfile.TemporaryFile(dir=folder).close()  # it has no name on Linux
    except OSError as error:
        raise UserError(f"{path} cannot be written: {folder}: {error.strerror}") from error


_PACKAGE = Path(__file__).parents[1]


def find_shipped(name: str, kind: str, pattern: str) -> Path:
    """Return a file, given its path or its name among the shipped ones.

    Args:
        name: path of a file, or name of a shipped one without `.yaml`.
        kind: what the file is ("recipe"), for the message.
        pattern: of the shipped files, relative to their folder.

    Raises:
        UserError: if there is no such file and no shipped one of that name.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    # A wheel has the recipes inside the package; a checkout has them in its root folder.
    for folder in (_PACKAGE / "shipped_recipes", _PACKAGE.parents[1] / "recipes"):
        shipped = {file.stem: file for file in sorted(folder.glob(pattern))}
        if name in shipped:
            return shipped[name]
        if shipped:
            raise UserError(f"{kind} {name}: no such file; shipped are {', '.join(shipped)}")
    raise UserError(f"{kind} {name}: no such file")
