"""Every test of the data has an empty cache, so that none reads or writes the user's."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(empty_cache: Path) -> Path:
    return empty_cache
