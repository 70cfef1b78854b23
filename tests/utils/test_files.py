"""Files and folders are written whole or not at all, whatever their names are."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llm2comp.utils.files import atomic_file, atomic_folder, link_weights

LONGEST_NAMES = ["a" * 255, "a" + "é" * 127, "語" * 85]
"""Names of 255 bytes, the most that file systems allow. A cut by bytes would split a character."""


@pytest.mark.parametrize("name", LONGEST_NAMES)
def test_a_file_may_have_the_longest_name(tmp_path: Path, name: str) -> None:
    with atomic_file(tmp_path / name) as partial:
        partial.write_text("text")
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "text"


@pytest.mark.parametrize("name", LONGEST_NAMES)
def test_a_folder_may_have_the_longest_name(tmp_path: Path, name: str) -> None:
    with atomic_folder(tmp_path / name) as partial:
        (partial / "file").write_text("text")
    assert [folder.name for folder in tmp_path.iterdir()] == [name]
    assert (tmp_path / name / "file").read_text() == "text"


def write_and_stop(file: Path) -> None:
    file.write_text("new")
    raise KeyboardInterrupt


def test_a_failure_leaves_the_old_file_and_no_partial_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as partial:
        write_and_stop(partial)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_folder_and_no_partial_one(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "file").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_folder(path) as partial:
        write_and_stop(partial / "file")
    assert (path / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def stop() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("moved", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", [1, 2])
def test_a_stop_at_any_move_leaves_the_old_folder_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, moved: bool
) -> None:
    path, move, moves = tmp_path / "folder", Path.rename, []
    path.mkdir()
    (path / "file").write_text("old")

    def stopping(self: Path, target: Path) -> None:
        moves.append(target)
        if len(moves) == step and not moved:
            stop()
        move(self, target)
        if len(moves) == step and moved:
            stop()

    monkeypatch.setattr(Path, "rename", stopping)
    with pytest.raises(KeyboardInterrupt), atomic_folder(path) as partial:
        (partial / "file").write_text("new")
    assert (path / "file").read_text() == ("new" if (step, moved) == (2, True) else "old")
    assert list(tmp_path.iterdir()) == [path]


def test_a_signal_between_the_moves_leaves_the_old_folder(tmp_path: Path) -> None:
    """A signal runs the exit functions, and ends the process where it is."""
    path = tmp_path / "folder"
    path.mkdir()
    (path / "file").write_text("old")
    code = f"""
import atexit, os
from pathlib import Path
from llm2comp.utils.files import atomic_folder
rename = Path.rename
def ended(self, target):
    Path.rename = rename
    rename(self, target) if self.name == "folder" else None
    atexit._run_exitfuncs()
    os._exit(3)
Path.rename = ended
with atomic_folder(Path({str(path)!r})) as partial:
    (partial / "file").write_text("new")
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 3
    assert (path / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_folder_goes_when_the_new_one_is_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "file").write_text("old")
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: stop())
    with pytest.raises(KeyboardInterrupt), atomic_folder(path) as partial:
        (partial / "file").write_text("new")
    assert (path / "file").read_text() == "new"


def test_two_files_that_begin_alike_may_be_written_at_once(tmp_path: Path) -> None:
    first, second = (tmp_path / f"{'a' * 200}{end}" for end in "12")
    with atomic_file(first) as one, atomic_file(second) as two:
        one.write_text("1")
        two.write_text("2")
    assert (first.read_text(), second.read_text()) == ("1", "2")


def test_a_folder_and_its_files_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_folder(tmp_path / "folder") as partial:
            (partial / "file").touch(mode=0o600)  # as the library of safetensors does
    finally:
        os.umask(before)
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "folder" / "file").stat().st_mode & 0o777 == 0o640


def test_weights_are_linked_and_all_other_files_copied(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    (first / "adapter").mkdir(parents=True)
    for name in ("model.safetensors", "adapter/adapter_model.safetensors", "README.md"):
        (first / name).write_text("content")
    first.chmod(0o700)
    (first / "model.safetensors").chmod(0o640)
    with atomic_folder(second) as partial:
        shutil.copytree(first, partial, copy_function=link_weights, dirs_exist_ok=True)
        partial.chmod(0o755)
    assert (second / "model.safetensors").samefile(first / "model.safetensors")
    assert (second / "adapter" / "adapter_model.safetensors").stat().st_nlink == 2
    assert not (second / "README.md").samefile(first / "README.md")
    (second / "README.md").write_text("edited")
    assert (first / "README.md").read_text() == "content"
    assert (first / "model.safetensors").stat().st_mode & 0o777 == 0o640  # the umask was another
    shutil.rmtree(second)
    assert (first / "model.safetensors").read_text() == "content"


def test_weights_are_copied_where_there_are_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    source.write_text("content")
    link_weights(str(source), str(target))
    assert target.read_text() == "content"
    assert not target.samefile(source)
