"""Fetch one archive from a package index with its ordinary client and keep a few of its files.

Nothing is installed. pip is told the sha256 beforehand and so refuses a wrong
archive before it looks inside; the archive is hashed here again whatever the
client did, its named members are extracted, and it is removed.
"""

import contextlib
import fnmatch
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from llm2comp.errors import UserError
from llm2comp.utils.files import atomic_folder


@dataclass(frozen=True)
class Archive:
    """One file of a package index."""

    ecosystem: Literal["pypi", "npm"]
    package: str
    version: str
    sha256: str
    size: int
    """Bytes, for the progress bar."""
    sdist: bool = False
    wheel_tag: str = ""
    """``python-abi-platform`` of a wheel that is not for every platform."""


# pip prepares an sdist's metadata even when it only downloads, and from 26.3 on refuses one whose
# metadata names a direct URL (bigbench) although --no-deps asks for none of its dependencies. This
# release, run from its own wheel and installed nowhere, downloads both sdists of the catalogue.
_PIP_FOR_SDISTS = Archive(
    ecosystem="pypi",
    package="pip",
    version="25.3",
    sha256="9655943313a94722b7774661c21049070f6bbb0a1516bf02f7c8d5d9201514cd",
    size=1_778_622,
)


def extract_members(archive: Archive, members: Sequence[str], folder: Path) -> None:
    """Download ``archive`` and make ``folder`` hold those of its files that match ``members``.

    Args:
        archive: what to download.
        members: paths inside the archive, or patterns with ``*``; the files keep these paths.
        folder: made whole or not at all.

    Raises:
        UserError: if the client is missing, the download fails, the sha256 differs, a member is
            not in the archive, or the disk is full; ``folder`` is then as it was.
    """
    name = f"{archive.package} {archive.version}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download.", dir=folder.parent) as temporary:
            path = _download(archive, Path(temporary))
            with atomic_folder(folder) as partial:
                _extract(path, members, partial)
    except OSError as error:
        raise UserError(
            f"{name} cannot be kept in {folder.parent}: {error.strerror or error}; free some space "
            "or set LLM2COMP_CACHE to another folder"
        ) from error


def _download(archive: Archive, folder: Path) -> Path:
    target = folder / "archive"
    target.mkdir()
    command = _npm(archive, target) if archive.ecosystem == "npm" else _pip(archive, target)
    _run(command, archive, folder)
    files = list(target.iterdir())
    if len(files) != 1:
        raise UserError(
            f"{archive.package} {archive.version}: {Path(command[0]).name} left {len(files)} files "
            "where one archive was expected; run it again with an up-to-date client"
        )
    found = _sha256(files[0])
    if found != archive.sha256:
        raise UserError(
            f"{archive.package} {archive.version}: sha256 of the archive is {found}, not "
            f"{archive.sha256}; it is not used. Check the package index that is configured"
        )
    return files[0]


def _npm(archive: Archive, target: Path) -> list[str]:
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            f"{archive.package} comes from the npm registry, and npm is not installed; install "
            "Node.js, or take another source of `llm2comp data list`"
        )
    spec = f"{archive.package}@{archive.version}"
    return [npm, "pack", spec, "--ignore-scripts", "--pack-destination", str(target)]


def _pip(archive: Archive, target: Path) -> list[str]:
    requirement = target.parent / "requirement.txt"
    requirement.write_text(
        f"{archive.package}=={archive.version} --hash=sha256:{archive.sha256}\n", encoding="utf-8"
    )
    return [
        *([sys.executable, str(_old_pip(target.parent))] if archive.sdist else _user_pip()),
        *["download", "--no-deps", "--no-cache-dir", "--progress-bar", "off"],
        *["--disable-pip-version-check", "--no-input", "--dest", str(target)],
        *["--require-hashes", "--requirement", str(requirement)],
        *(["--no-binary", archive.package] if archive.sdist else ["--only-binary", ":all:"]),
        *_platform(archive.wheel_tag),
    ]


def _user_pip() -> list[str]:
    if importlib.util.find_spec("pip") is None:
        raise UserError("pip is not in this environment; run `python -m ensurepip` once")
    return [sys.executable, "-m", "pip"]


def _old_pip(folder: Path) -> Path:
    """Return ``pip`` inside the wheel of the pinned release, which Python can run as it is."""
    home = folder / "pip"
    home.mkdir()
    return _download(_PIP_FOR_SDISTS, home) / "pip"


def _platform(wheel_tag: str) -> list[str]:
    if not wheel_tag:
        return []
    python, abi, platform = wheel_tag.split("-")
    version = f"{python[2]}.{python[3:]}"
    options = {"implementation": python[:2], "python-version": version, "abi": abi}
    return [f"--{key}={value}" for key, value in (options | {"platform": platform}).items()]


def _run(command: list[str], archive: Archive, folder: Path) -> None:
    """Run a client with a progress bar fed by what it has written below ``folder``."""
    environment = os.environ | {
        # Both clients download to a temporary file first: here it is seen, and removed.
        "TMPDIR": str(folder),
        "npm_config_cache": str(folder / "npm"),
        # An sdist asks git for its version; outside its repository it needs to be told.
        "SETUPTOOLS_SCM_PRETEND_VERSION": archive.version,
    }
    errors = folder / "errors.txt"
    with (
        errors.open("wb") as stderr,
        subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=stderr, env=environment, cwd=folder
        ) as process,
    ):
        try:
            _watch(process, archive, folder)
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise UserError(
            f"{archive.package} {archive.version} cannot be downloaded "
            f"({_last_error(errors.read_text(encoding='utf-8', errors='replace'))}); check the "
            "network and the package index that is configured. It is needed once: afterwards "
            "the cache folder (LLM2COMP_CACHE) serves it offline"
        )


def _watch(process: "subprocess.Popen[bytes]", archive: Archive, folder: Path) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(
            f"fetching {archive.package} {archive.version}", total=archive.size
        )
        while process.poll() is None:
            progress.update(task, completed=min(_size(folder), archive.size))
            try:
                process.wait(0.3)
            except subprocess.TimeoutExpired:
                continue
        progress.update(task, completed=archive.size)


def _size(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # the client is at work in here
                total += (Path(parent) / name).stat().st_size
    return total


def _last_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    marked = [line for line in lines if line.lower().startswith(("error", "npm err", "npm error"))]
    telling = [line for line in marked if "log of this run" not in line]
    message = (telling or lines or ["no message"])[-1 if not marked else 0]
    return message if len(message) <= 200 else f"{message[:197]}..."


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _extract(path: Path, patterns: Sequence[str], folder: Path) -> None:
    missing = set(patterns)
    for member, stream in _members(path):
        matched = [pattern for pattern in patterns if fnmatch.fnmatchcase(member, pattern)]
        if not matched:
            continue
        missing.difference_update(matched)
        target = folder / member
        if not target.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{path.name}: member {member!r} points outside; it is not used")
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            shutil.copyfileobj(stream, file)
    if missing:
        raise UserError(f"{path.name} has no {', '.join(sorted(missing))}; the catalogue is wrong")


def _members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield the name of every file in a wheel or a tarball, with its content to be read at once."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as wheel:
            for info in wheel.infolist():
                if not info.is_dir():
                    with wheel.open(info) as stream:
                        yield info.filename, stream
        return
    with tarfile.open(path, "r|*") as tarball:  # "r|" reads 358 MB once, without seeking back
        for member in tarball:
            content = tarball.extractfile(member) if member.isfile() else None
            if content is not None:
                yield member.name, content
