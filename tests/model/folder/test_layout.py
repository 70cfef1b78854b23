"""Old clients read a causal folder and refuse a bidirectional one; `make test-ecosystem` runs them.

These tests guard what that depends on, without the old clients.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import environment

from llm2comp.model.folder import layout

DEFAULT = {"rope_type": "default", "rope_theta": 5.0}
FACTOR = {"rope_type": "linear", "rope_theta": 5.0, "factor": 2.0}
SLIDING, FULL = "sliding_attention", "full_attention"


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def test_a_causal_folder_has_the_words_of_old_clients(folders: dict[str, Path]) -> None:
    folder = folders["causal"]
    names = [module["type"] for module in read(folder / "modules.json")]
    old = "sentence_transformers.models"
    modules = ("Transformer", "WordWeights", "Pooling", "Normalize")
    assert names == [f"{old}.{name}" for name in modules]
    pooling = read(folder / "2_Pooling" / "config.json")
    assert [key for key, value in pooling.items() if value is True] == [
        "pooling_mode_mean_tokens",
        "include_prompt",
    ]
    assert pooling["word_embedding_dimension"] == 32
    assert not {"pooling_mode", "embedding_dimension"} & set(pooling)
    length = SentenceTransformer(str(folder), device="cpu").max_seq_length
    assert read(folder / "sentence_bert_config.json") == {
        "max_seq_length": length,
        "do_lower_case": False,
    }
    tokenizer = read(folder / "tokenizer_config.json")
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokenizer["model_input_names"] == ["input_ids", "attention_mask"]
    config = read(folder / "config.json")
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert "requirements" not in read(folder / "config_sentence_transformers.json")


def test_old_clients_refuse_a_bidirectional_folder(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folders["bidirectional"]
    types = [module["type"] for module in read(folder / "modules.json")]
    # Neither name is there before sentence-transformers 6 and transformers 5.
    assert "sentence_transformers.base.modules.normalize.Normalize" in types
    assert read(folder / "tokenizer_config.json")["tokenizer_class"] == "TokenizersBackend"
    SentenceTransformer(str(folder), device="cpu")
    for package, version in (("transformers", "5.1.0"), ("sentence-transformers", "6.0.0")):
        with monkeypatch.context() as patch:
            installed = environment.get_installed_version
            patch.setattr(
                environment,
                "get_installed_version",
                lambda name, package=package, version=version, installed=installed: (
                    version if name == package else installed(name)
                ),
            )
            with pytest.raises(ImportError, match=f"{package}=={version} is installed"):
                SentenceTransformer(str(folder), device="cpu")


@pytest.mark.parametrize("name", ["causal", "bidirectional"])
def test_servers_that_choose_their_code_by_architecture_know_none(
    folders: dict[str, Path], name: str
) -> None:
    assert read(folders[name] / "config.json")["architectures"] == ["LlamaMemoryEncoder"]


@pytest.mark.parametrize("name", ["causal", "bidirectional"])
def test_programs_that_look_for_a_pooling_mode_find_none_that_they_can_read(
    folders: dict[str, Path], name: str
) -> None:
    folder = folders[name]
    assert "1_Pooling" not in [module["path"] for module in read(folder / "modules.json")]
    # txtai would take a missing file, or a table without a mode that it knows, for the mode `mean`.
    mode = read(folder / "1_Pooling" / "config.json")
    assert isinstance(mode, str)
    assert "use sentence-transformers" in mode
    with pytest.raises(AttributeError):
        mode.get("pooling_mode")


@pytest.mark.parametrize(
    ("config", "old"),
    [
        ({}, {}),
        ({"rope_parameters": DEFAULT}, {"rope_theta": 5.0}),
        (
            {"rope_parameters": FACTOR | {"partial_rotary_factor": 0.5}},
            {
                "rope_theta": 5.0,
                "partial_rotary_factor": 0.5,
                "rope_scaling": {"rope_type": "linear", "factor": 2.0},
            },
        ),
        (
            {"rope_parameters": {SLIDING: DEFAULT, FULL: FACTOR | {"rope_theta": 9.0}}},
            {
                "rope_theta": 9.0,
                "rope_scaling": {"rope_type": "linear", "factor": 2.0},
                "rope_local_base_freq": 5.0,
            },
        ),
        ({"rope_parameters": {SLIDING: FACTOR, FULL: DEFAULT}}, None),
        ({"rope_parameters": {"rope_type": "proportional"}}, None),
        (
            {
                "model_type": "gpt_neox",
                "rope_parameters": DEFAULT | {"partial_rotary_factor": 1.0},
            },
            {
                "rope_theta": 5.0,
                "rotary_emb_base": 5.0,
                "partial_rotary_factor": 1.0,
                "rotary_pct": 1.0,
            },
        ),
        ({"layer_types": [FULL, FULL]}, {}),
        ({"layer_types": [SLIDING, SLIDING, FULL] * 2}, {"sliding_window_pattern": 3}),
        ({"layer_types": [SLIDING, SLIDING, FULL, SLIDING]}, {"sliding_window_pattern": 3}),
        ({"layer_types": [FULL, SLIDING]}, None),
        ({"layer_types": [SLIDING, FULL, FULL]}, None),
        ({"attn_logit_softcapping": 50.0}, None),
        ({"is_causal": False}, None),
    ],
)
def test_what_transformers_4_cannot_say_is_not_said(
    config: dict[str, Any], old: dict[str, Any] | None
) -> None:
    assert layout._as_transformers_4({"is_causal": True} | config) == old
