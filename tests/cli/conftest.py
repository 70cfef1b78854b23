"""What tests of commands share."""

from pathlib import Path

import pytest

from llm2comp.evaluation import baselines


@pytest.fixture(scope="session")
def encoder(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder folder of the mean of all states. Tests must not write to it."""
    folder = tmp_path_factory.mktemp("encoder") / "mean"
    baselines.build("mean", tiny_backbone).save_pretrained(str(folder))
    return folder
