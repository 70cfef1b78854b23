"""A changed byte anywhere in a folder is found, and the file is named."""

import shutil
import subprocess
from pathlib import Path

import pytest

from llm2comp.errors import UserError
from llm2comp.utils.checksums import CHECKSUMS, require_unchanged, write_checksums


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "folder"
    (root / "inner").mkdir(parents=True)
    (root / "weights.bin").write_bytes(bytes(range(256)) * 10)
    (root / "inner" / "ä.txt").write_text("text")
    write_checksums(root)
    return root


def test_an_unchanged_folder_passes_and_so_it_does_with_more_files(folder: Path) -> None:
    require_unchanged(folder)
    (folder / "more.txt").write_text("added later")
    require_unchanged(folder)


@pytest.mark.parametrize("name", ["weights.bin", "inner/ä.txt"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_one_line_that_names_the_file(folder: Path, name: str, damage: str) -> None:
    file = folder / name
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[:-1])
    else:
        file.unlink()
    with pytest.raises(UserError, match=file.name):
        require_unchanged(folder)


def test_a_flipped_bit_anywhere_in_the_checksums_is_found(folder: Path) -> None:
    content = (folder / CHECKSUMS).read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        (folder / CHECKSUMS).write_bytes(damaged)
        with pytest.raises(UserError):
            require_unchanged(folder)


def test_a_folder_without_checksums_is_of_an_older_version(tmp_path: Path) -> None:
    require_unchanged(tmp_path)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum here")
def test_sha256sum_reads_the_file(folder: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--strict", CHECKSUMS], cwd=folder, check=True)
