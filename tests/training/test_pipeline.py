"""A run that was killed resumes, and the result is the same bits as without the kill."""

import json
import multiprocessing
import shutil
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer

from llm2comp import recipe
from llm2comp.errors import UserError
from llm2comp.inference.load import load
from llm2comp.model import released
from llm2comp.model.lineage import Lineage
from llm2comp.recipe import STAGE_FOLDERS
from llm2comp.training import pipeline, trainer
from llm2comp.training.guarded_trainer import MEMORY_EMBEDDINGS

ENCODERS = (*STAGE_FOLDERS.values(), "model")


def train(recipe_path: Path, out: Path) -> None:
    pipeline.train(recipe.load_recipe(recipe_path), out)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def uninterrupted(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(tiny_recipe, out)
    return out


def kill_within(stage: str, recipe_path: Path, out: Path) -> None:
    """Start a run and kill it with SIGKILL once the stage has written a whole checkpoint."""
    # A fork, because the imports of a new process take longer than the run.
    process = multiprocessing.get_context("fork").Process(target=train, args=(recipe_path, out))
    process.start()
    work = out / f".{STAGE_FOLDERS[stage]}.work"
    deadline = time.monotonic() + 300
    while trainer.last_checkpoint(work) is None:
        assert process.is_alive(), "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.join()
    assert not (out / STAGE_FOLDERS[stage]).exists()


def test_killed_in_every_stage_equals_uninterrupted(
    tiny_recipe: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    for stage in STAGE_FOLDERS:
        kill_within(stage, tiny_recipe, out)
    train(tiny_recipe, out)
    for folder in (*STAGE_FOLDERS.values(), "model"):
        assert weights(out / folder) == weights(uninterrupted / folder), folder
    assert not list(out.glob(".*")), "work folders are left"


def test_killed_mntp_resumes_with_the_masks_that_it_would_have_drawn(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    settings = yaml.safe_load(tiny_recipe.read_text())
    settings["stages"] = settings["stages"][:1]
    settings["stages"][0] |= {"objective": "mntp", "attention": "bidirectional"}
    path = tmp_path / "mntp.yaml"
    path.write_text(yaml.safe_dump(settings))
    kill_within("pretext", path, tmp_path / "killed")
    for out in ("killed", "whole"):
        train(path, tmp_path / out)
    assert weights(tmp_path / "killed" / "model") == weights(tmp_path / "whole" / "model")


def test_layout_and_log(uninterrupted: Path) -> None:
    names = {path.name for path in uninterrupted.iterdir()}
    names.discard("tensorboard")  # where it is installed
    assert names == {*STAGE_FOLDERS.values(), "model", "recipe.yaml", "run.jsonl"}
    events = [json.loads(line) for line in (uninterrupted / "run.jsonl").open()]
    measured = {
        stage: [
            (e["step"], e["held_out"]) for e in events if "held_out" in e and e["stage"] == stage
        ]
        for stage in STAGE_FOLDERS
    }
    assert [step for step, _ in measured["pretext"]] == [0, 10, 20]
    for stage in ("unsupervised", "supervised"):
        assert measured[stage][0][0] == 0
        assert all(1 <= h["rankme"] <= 32 and h["loss"] > 0 for _, h in measured[stage])
        assert all(h["token_cosine"] <= 1 for _, h in measured[stage])
    pretext = [values for _, values in measured["pretext"]]
    assert all(1 <= h["rankme"] <= 8 for h in pretext)  # of eight held-out passages
    assert all(h["gap"] == pytest.approx(h["mismatched"] - h["matched"], abs=2e-4) for h in pretext)
    assert [event["stage"] for event in events if event.get("done")] == list(STAGE_FOLDERS)
    assert all(event["tokens_per_second"] > 0 for event in events if "loss" in event)
    lineage = json.loads((uninterrupted / "model" / "llm2comp.json").read_text())
    assert [stage["stage"] for stage in lineage["stages"]] == list(STAGE_FOLDERS)


def test_each_stage_changes_the_encoder_and_the_model_is_the_last(uninterrupted: Path) -> None:
    stages = [weights(uninterrupted / folder) for folder in STAGE_FOLDERS.values()]
    assert len(set(stages)) == 3
    assert weights(uninterrupted / "model") == stages[-1]
    vectors = SentenceTransformer(str(uninterrupted / "model"), device="cpu").encode(["whales"])
    assert vectors.shape == (1, 32)


def test_every_stage_s_tokenizer_keeps_special_tokens_out_of_texts(uninterrupted: Path) -> None:
    """Also where transformers loaded the folder of the stage before and saved it again."""
    files = {(uninterrupted / stage / "tokenizer.json").read_bytes() for stage in ENCODERS}
    assert len(files) == 1
    alone = Tokenizer.from_str(files.pop().decode())
    ids = alone.encode("a <s> b</s><|memory_0|>").ids
    rows = 300 + 4
    assert ids[0] == alone.token_to_id("<s>")  # BOS
    assert not {0, 1, 2} & set(ids[1:])
    assert [i for i in ids if i >= rows - 4] == list(range(rows - 4, rows))


def test_a_finished_run_is_skipped_and_another_recipe_refused(
    tiny_recipe: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(uninterrupted, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    pipeline.train(recipe.load_recipe(tiny_recipe), out)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == before
    with pytest.raises(UserError, match="another recipe"):
        pipeline.train(recipe.load_recipe(tiny_recipe, ["seed=1"]), out)


def test_checkpoints_hold_only_what_trains(tiny_recipe: Path, tmp_path: Path) -> None:
    kill_within("pretext", tiny_recipe, tmp_path / "run")
    checkpoint = trainer.last_checkpoint(tmp_path / "run" / ".1-pretext.work")
    assert checkpoint is not None
    with safe_open(checkpoint / trainer.WEIGHTS, "pt") as saved:
        names = list(saved.keys())
    assert names
    assert all("lora_" in name or MEMORY_EMBEDDINGS in name for name in names)
    assert not list(checkpoint.glob("model*"))
    (checkpoint / "trainer_state.json").write_text("{")  # as if killed while writing it
    assert trainer.last_checkpoint(tmp_path / "run" / ".1-pretext.work") != checkpoint


def test_a_release_gives_the_run_s_encoders_back(
    tiny_backbone: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "tools"))
    from pack_release import pack

    monkeypatch.setattr(released, "RELEASED", tmp_path / "released")
    monkeypatch.setenv("LLM2COMP_CACHE", str(tmp_path / "cache"))
    pack(uninterrupted, tmp_path / "released" / "tiny")
    # A folder names its local backbone without the path; a release has one with a name.
    lineage = Lineage.read(tmp_path / "released" / "tiny")
    backbone = lineage.backbone.model_copy(update={"name": str(tiny_backbone)})
    lineage.model_copy(update={"backbone": backbone}).write(tmp_path / "released" / "tiny")
    assert released.names() == ["tiny"]
    texts = ["Whales breathe air.", "Roman coins near the harbour"]
    for stage, folder in (("", "model"), ("/1-pretext", "1-pretext")):
        trained = SentenceTransformer(str(uninterrupted / folder), device="cpu").encode(texts)
        unpacked = load(f"tiny{stage}", "float32").encode(texts)
        cosine = torch.nn.functional.cosine_similarity(
            torch.from_numpy(trained), torch.from_numpy(unpacked)
        )
        assert cosine.min() > 0.999  # the release keeps adapters in bfloat16
    cached = released.fetch("tiny")
    assert cached == released.fetch("tiny/3-supervised")
    for wrong, message in (("tiny/4-best", "no stage"), ("huge", "no released model")):
        with pytest.raises(UserError, match=message):
            released.fetch(wrong)
    adapter = tmp_path / "released" / "tiny" / "3-supervised" / "adapter_model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(adapter).items()}, adapter)
    assert weights(released.fetch("tiny")) != weights(cached), "another release, another folder"


def test_a_contrastive_stage_without_an_encoder_is_refused(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    settings = recipe.load_recipe(tiny_recipe)
    alone = settings.model_copy(update={"stages": settings.stages[1:]})
    with pytest.raises(UserError, match="put pretext before it"):
        pipeline.train(alone, tmp_path / "run")
