"""Checksums of the files in a folder, so that a damaged file is never read as a good one.

They are in one file in the format of `sha256sum`, which can check the folder too.
"""

import hashlib
from pathlib import Path

from llm2comp.errors import UserError
from llm2comp.utils.files import atomic_file

CHECKSUMS = "checksums.sha256"
"""File of a folder with the checksums of all its other files, but for `CALIBRATION`."""
CARD = "README.md"
"""The model card of an encoder folder, which people may edit."""
CALIBRATION = "calibration.npy"
"""File that is added to an encoder folder when its embeddings are first stored in 8 bits. It says
nothing that the other files do not say."""


def write_checksums(folder: Path) -> None:
    """Write the checksums of all files in a folder and its subfolders."""
    text = _lines(folder, _files(folder))
    with atomic_file(folder / CHECKSUMS) as partial:
        partial.write_text(text, encoding="utf-8")


def fingerprint(folder: Path) -> str:
    """Return a hash of all files in a folder and its subfolders, but for its README."""
    files = [file for file in _files(folder) if file != folder / CARD]
    return hashlib.sha256(_lines(folder, files).encode()).hexdigest()


def _lines(folder: Path, files: list[Path]) -> str:
    """Return a line for each file of a folder, as `sha256sum` writes it."""
    return "".join(f"{_digest(file)}  {file.relative_to(folder).as_posix()}\n" for file in files)


def require_unchanged(folder: Path, edited: str | None = None) -> None:
    """Check that a folder holds the files that its checksums were written for.

    Files that were added later are not looked at. A folder without checksums, which an older
    version wrote, is not checked.

    Args:
        folder: with `CHECKSUMS`.
        edited: name of a file that people may edit; it is not checked.

    Raises:
        UserError: if a file is missing or has changed; the message names it.
    """
    file = folder / CHECKSUMS
    if not file.exists():
        return
    text = file.read_text(encoding="utf-8", errors="replace")
    if not text.endswith("\n"):
        raise UserError(f"{file} is damaged: its end is missing")
    lines = text.removesuffix("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        digest, separator, name = line.partition("  ")
        if not separator or len(digest) != 64:
            raise UserError(f"{file}:{number}: not a checksum; the file is damaged")
        if name == edited:
            continue
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing, and {file} lists it")
        if _digest(folder / name) != digest:
            raise UserError(
                f"{folder / name} is damaged or was edited: its checksum is not that in {file}"
            )


def with_content(folder: Path, name: str, content: bytes) -> str:
    """Return the checksums of a folder as they are if one of its files has another content.

    Args:
        folder: with `CHECKSUMS`.
        name: of the file, relative to the folder.
        content: of the file.
    """
    lines = (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()
    changed = f"{hashlib.sha256(content).hexdigest()}  {name}"
    return "".join(f"{changed if line[66:] == name else line}\n" for line in lines)


def _files(folder: Path) -> list[Path]:
    return sorted(
        f for f in folder.rglob("*") if f.is_file() and f.name not in (CHECKSUMS, CALIBRATION)
    )


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
