"""The card and the lineage say what a reader needs, and nothing about the machine that trained."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard, metadata_load

from llm2comp.model import released
from llm2comp.model.folder.card import model_card
from llm2comp.model.lineage import Lineage, base_name

ABSOLUTE = re.compile(r"""["'` ](/[\w.-]+){2,}""")


@pytest.mark.parametrize("name", ["causal", "bidirectional"])
def test_a_folder_has_no_path_and_the_modes_of_the_umask(
    folders: dict[str, Path], name: str
) -> None:
    files = [file for file in folders[name].rglob("*") if file.is_file()]
    umask = os.umask(0)
    os.umask(umask)
    assert {file.stat().st_mode & 0o777 for file in files} == {0o666 & ~umask}
    for file in files:
        if file.suffix in (".json", ".md"):
            text = file.read_text()
            assert str(folders[name].parent) not in text, file
            assert not ABSOLUTE.search(text), file
    lineage = Lineage.read(folders[name])
    assert lineage.backbone.name == "tiny-llama"
    assert [data.source for data in lineage.stages[0].data] == ["texts.txt", "boolq-passages"]
    adapter = json.loads((folders[name] / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "tiny-llama"


def test_the_shipped_adapters_have_no_path() -> None:
    configs = list(released.RELEASED.rglob("adapter_config.json"))
    assert len(configs) == 3
    for config in configs:
        assert not ABSOLUTE.search(config.read_text()), config


def test_names_that_are_no_local_paths_are_kept(tmp_path: Path) -> None:
    assert base_name("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    assert base_name("boolq-pairs") == "boolq-pairs"
    assert base_name("texts/mine.txt") == "mine.txt"
    assert base_name(str(tmp_path)) == tmp_path.name


def test_the_metadata_are_those_of_the_hub(folders: dict[str, Path], tmp_path: Path) -> None:
    metadata = metadata_load(folders["causal"] / "README.md")
    assert metadata is not None
    assert metadata["license"] == "mit"
    assert metadata["library_name"] == "sentence-transformers"
    assert "base_model" not in metadata  # a local folder is no model of the hub
    assert "language" not in metadata  # of the local file it is not known
    card = ModelCard.load(folders["causal"] / "README.md")
    assert "Load this folder with sentence-transformers >=3.4" in card.text
    assert "- `boolq-passages`: CC-BY-SA-3.0" in card.text
    assert f"torch {Lineage.read(folders['causal']).versions['torch']}" in card.text
    bidirectional = (folders["bidirectional"] / "README.md").read_text()
    assert "sentence-transformers >=6.2 and transformers >=5.2" in bidirectional


def test_the_code_on_the_card_checks_the_embeddings(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    text = (folders["causal"] / "README.md").read_text()
    first, second, _ = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec((first + second).replace("path/to/this/folder", str(folders["causal"])), {})
    cosines = np.fromstring(capsys.readouterr().out.strip(" []\n"), sep=" ")
    np.testing.assert_allclose(cosines, np.ones(3), atol=1e-6)


def test_the_licence_of_a_packaged_backbone_is_known_without_the_lineage() -> None:
    lineage = Lineage.read(released.RELEASED / "smollm2-135m-llm2comp")
    lineage = lineage.model_copy(update={"licence": None})  # as an older version wrote it
    data = ModelCard(model_card(lineage, 576, {"transformers": ">=5.2"})).data
    assert data.license == "apache-2.0"
    assert data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert data.language == "en"
    other = lineage.backbone.model_copy(update={"name": "tiny-llama"})
    unknown = lineage.model_copy(update={"backbone": other})
    data = ModelCard(model_card(unknown, 576, {"transformers": ">=5.2"})).data
    assert data.license is None
