"""What tests of training share: an encoder of others, and pairs."""

from pathlib import Path

import pytest
from base_encoders import write_bert, write_pairs


@pytest.fixture(scope="session")
def bert(sentences: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of sentence-transformers with a random BERT. Tests must not write to it."""
    return write_bert(tmp_path_factory.mktemp("others") / "bert", sentences)


@pytest.fixture(scope="session")
def pairs(sentences: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of pairs."""
    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", sentences)
