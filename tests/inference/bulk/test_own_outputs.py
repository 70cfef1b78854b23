"""Vectors are never written to where the same call would read them as texts."""

from pathlib import Path

import fsspec
import pytest

import llm2comp
from llm2comp.errors import UserError


@pytest.fixture
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder of this machine, or of an object store, with a file of texts in `texts`."""
    name = f"memory://{tmp_path.name}" if request.param == "remote" else str(tmp_path)
    with fsspec.open(f"{name}/texts/a.txt", "w", auto_mkdir=True) as file:
        file.write("one\n")
    return name


ROOTS = pytest.mark.parametrize("root", ["local", "remote"], indirect=True)


@ROOTS
@pytest.mark.parametrize("pattern", ["texts", "texts/", "texts/**", "**/*", "texts/**/*.*"])
def test_an_output_in_its_input_is_refused_at_once(root: str, pattern: str, encoder: Path) -> None:
    fs, path = fsspec.url_to_fs(root)
    before = fs.find(path)
    with pytest.raises(UserError, match=r"^--out .*/vectors: is in the input .*; name another$"):
        llm2comp.encode_files(encoder, f"{root}/{pattern}", f"{root}/texts/vectors")
    assert fs.find(path) == before


@ROOTS
@pytest.mark.parametrize(
    ("pattern", "out"),
    [
        ("texts/**/*.txt", "texts/vectors"),  # vectors have another ending
        ("texts/*", "texts/vectors"),
        ("texts", "texts/_vectors"),  # left out, as all that begins so
        ("texts", "texts-vectors"),
    ],
)
def test_an_output_that_is_no_input_can_be_continued(
    root: str, pattern: str, out: str, encoder: Path
) -> None:
    for unchanged in (0, 1):
        done = llm2comp.encode_files(encoder, f"{root}/{pattern}", f"{root}/{out}")
        assert (done.files, done.unchanged) == (1, unchanged)
