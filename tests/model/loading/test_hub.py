"""Backbones of the hub: revisions, the cache without a network, and each mistake in one line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llm2comp.data import hub
from llm2comp.errors import UserError
from llm2comp.model import encoder
from llm2comp.model.backbone import backbone_folder, load_backbone, pinned
from llm2comp.model.lineage import Lineage
from llm2comp.recipe import load_recipe
from llm2comp.recipe_parts import Backbone
from llm2comp.training import pipeline

MAIN, OTHER = "a" * 40, "b" * 40


def first_weight(folder: Path) -> float:
    weight: torch.Tensor = AutoModelForCausalLM.from_pretrained(folder).model.embed_tokens.weight
    return weight[5, 0].item()


@pytest.fixture(scope="module")
def other(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny backbone at another commit, with other weights and no safetensors."""
    folder = Path(shutil.copytree(tiny_backbone, tmp_path_factory.mktemp("other") / "model"))
    weights = load_file(folder / "model.safetensors")
    torch.save({name: 2 * tensor for name, tensor in weights.items()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


@pytest.fixture(scope="module")
def session(
    tiny_backbone: Path, other: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    """What a client of a real server saw, and its cache."""
    home = tmp_path_factory.mktemp("home")
    script = Path(__file__).with_name("hub_session.py")
    environment = os.environ | {"HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
    environment.pop("HF_TOKEN", None)
    command = [sys.executable, str(script), str(tiny_backbone), str(other)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1]), home / "hub"


def test_a_revision_gives_its_own_weights(
    session: tuple[dict[str, Any], Path], tiny_backbone: Path, other: Path
) -> None:
    seen, _ = session
    assert seen["pinned main"] == MAIN
    assert seen["pinned v2"] == OTHER
    assert seen["main"] == first_weight(tiny_backbone)
    assert seen["v2"] == seen["commit"] == first_weight(other) != seen["main"]


def test_the_cached_copy_works_without_a_network(session: tuple[dict[str, Any], Path]) -> None:
    seen, _ = session
    assert seen["no network, cached"] == seen["main"]
    assert seen["no network, cached commit"] == seen["v2"]


@pytest.mark.parametrize(
    ("label", "parts"),
    [
        ("no such revision", ["no revision 'v3'", "a branch, a tag or a commit"]),
        ("gated", ["'me/gated' is gated", "/me/gated", "hf auth login"]),
        ("missing", ["no model 'me/missing' that you may read", "hf auth login"]),
        ("wrong token", ["refuses your token", "HF_TOKEN"]),
        ("no network, not cached", ["no whole 'me/missing'", "ConnectError", "check the name"]),
    ],
)
def test_each_mistake_is_one_line(
    session: tuple[dict[str, Any], Path], label: str, parts: list[str]
) -> None:
    line = session[0][label]
    assert all(part in line for part in parts), line
    assert "\n" not in line


def test_offline_uses_the_cache_and_says_when_it_is_not_whole(
    session: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Path(shutil.copytree(session[1], tmp_path / "hub", symlinks=True))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pinned(Backbone(name="me/tiny")).revision == MAIN
    assert backbone_folder("me/tiny", "v2").name == OTHER
    with pytest.raises(UserError, match=r"no whole 'me/missing'.*HF_HUB_OFFLINE is set"):
        load_backbone("me/missing")
    with pytest.raises(UserError, match=r"no whole 'me/tiny' at revision 'v9'.*HF_HUB_OFFLINE"):
        load_backbone("me/tiny", revision="v9")
    (backbone_folder("me/tiny") / "model.safetensors").unlink()  # as after a stopped download
    with pytest.raises(UserError, match="me/tiny"):
        load_backbone("me/tiny")


def test_a_revision_is_for_hub_models(tiny_backbone: Path) -> None:
    with pytest.raises(UserError, match=r"backbone\.revision is for hub models"):
        load_backbone(str(tiny_backbone), revision="main")
    local = Backbone(name=str(tiny_backbone))
    assert pinned(local) == local


def test_code_is_downloaded_only_if_it_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def download(_: str, *, allow_patterns: list[str], **__: Any) -> str:
        asked.append(allow_patterns)
        return "/nowhere"

    monkeypatch.setattr(hub.huggingface_hub, "snapshot_download", download)
    for code in (False, True):
        hub.download_model("me/tiny", code=code)
    assert ["*.py" in patterns for patterns in asked] == [False, False, True, True]


def test_a_run_keeps_the_commit_with_which_it_began(
    tiny_recipe: Path,
    tiny_backbone: Path,
    other: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cached = tmp_path / "hub" / "models--me--tiny"
    for commit, folder in ((MAIN, tiny_backbone), (OTHER, other)):
        shutil.copytree(folder, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(MAIN)
    (cached / "refs" / "v2").write_text(OTHER)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    recipe = load_recipe(tiny_recipe, ["backbone.name=me/tiny", "pretext.steps=2"])
    recipe.stages = recipe.stages[:1]
    out = tmp_path / "run"
    folder = pipeline.train(recipe, out)
    assert Lineage.read(folder).backbone.revision == MAIN
    assert load_recipe(out / "recipe.yaml").backbone.revision == MAIN

    trained = load_file(folder / "model.safetensors")
    (cached / "refs" / "main").write_text(OTHER)  # the model on the hub changes
    for stage in ("1-pretext", "model"):
        shutil.rmtree(out / stage)
    again = load_file(pipeline.train(recipe, out) / "model.safetensors")
    assert all(torch.equal(tensor, again[name]) for name, tensor in trained.items())
    rebuilt = encoder.build(Lineage.read(folder), [folder / encoder.ADAPTER])
    weights = encoder.encoder_body(rebuilt).state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in trained.items())

    moved = recipe.model_copy(update={"backbone": Backbone(name="me/tiny", revision="v2")})
    with pytest.raises(UserError, match=f"holds a run of another commit, {MAIN}"):
        pipeline.train(moved, out)
    other_run = pipeline.train(moved, tmp_path / "v2")
    assert Lineage.read(other_run).backbone.revision == OTHER


def test_a_hub_that_is_silent_is_asked_once_for_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download of a file that is not there asks seven times, with pauses."""
    asked: list[str] = []

    def silent(url: str, **_: object) -> None:
        asked.append(url)
        raise ConnectionError("no route")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub.huggingface_hub, "get_hf_file_metadata", silent)
    monkeypatch.setattr(
        hub.huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("it downloads")
    )
    assert not hub.has_file("me/tiny", "llm2comp.json")
    assert len(asked) == 1


def test_a_cached_commit_is_found_without_its_branch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models--me--tiny" / "snapshots" / MAIN
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert hub.cached_model("me/tiny") is None
    assert hub.cached_model("me/tiny", MAIN) == folder
