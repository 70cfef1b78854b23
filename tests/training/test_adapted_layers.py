"""What a run says about its LoRA: in the log, in the folder, and when an old run goes on."""

import json
import logging
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from llm2comp.errors import UserError
from llm2comp.model.lineage import Lineage
from llm2comp.recipe import Recipe, load_recipe
from llm2comp.training import pipeline

DEFAULT = ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SMALL = ["pretext.steps=1", "unsupervised.steps=1", "supervised.steps=1"]


def first_stage(tiny_recipe: Path, *overrides: str) -> Recipe:
    settings = load_recipe(tiny_recipe, [*SMALL, *overrides])
    return settings.model_copy(update={"stages": settings.stages[:1]})


def test_the_folder_the_log_and_the_card_name_what_was_adapted(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    settings = load_recipe(tiny_recipe, [*SMALL, "supervised.lora.target_modules=[q_proj]"])
    assert settings.stages[0].lora.target_modules is None
    folder = pipeline.train(settings, tmp_path / "run", Console(quiet=True))
    stages = Lineage.read(folder).stages
    assert [stage.lora["target_modules"] for stage in stages] == [DEFAULT, DEFAULT, ["q_proj"]]
    assert stages[0].lora["left_out"] == ["k_proj"]
    lines = (tmp_path / "run" / "run.jsonl").read_text().splitlines()
    logged = [
        event["lora"]["target_modules"] for event in map(json.loads, lines) if "lora" in event
    ]
    assert logged == [DEFAULT, DEFAULT, ["q_proj"]]
    card = (folder / "README.md").read_text()
    assert (
        "| `q_proj` | `k_proj`, `v_proj`, `o_proj`, `gate_proj`, `up_proj`, `down_proj` |" in card
    )


def test_a_wrong_name_in_a_later_stage_fails_before_stage_1(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    settings = load_recipe(tiny_recipe, [*SMALL, "supervised.lora.target_modules=[qkv_proj]"])
    with pytest.raises(UserError, match="'qkv_proj' is no linear layer of this model; its linear"):
        pipeline.train(settings, tmp_path / "run", Console(quiet=True))
    assert not list((tmp_path / "run").rglob("checkpoint-*"))


def test_a_run_whose_recipe_was_written_with_the_old_default_goes_on(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    settings = first_stage(tiny_recipe)
    pipeline.train(settings, tmp_path / "run", Console(quiet=True))
    path = tmp_path / "run" / "recipe.yaml"
    written = yaml.safe_load(path.read_text())
    written["stages"][0]["lora"]["target_modules"] = DEFAULT
    path.write_text(yaml.safe_dump(written))
    pipeline.train(settings, tmp_path / "run", Console(quiet=True))
    written["stages"][0]["lora"]["target_modules"] = ["q_proj"]
    path.write_text(yaml.safe_dump(written))
    with pytest.raises(UserError, match="a run of another recipe"):
        pipeline.train(settings, tmp_path / "run", Console(quiet=True))


def test_several_instructions_without_a_query_prompt_give_one_warning(
    tiny_recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = load_recipe(tiny_recipe).stages[0].data[0].source
    instructed = "pretext.data=" + json.dumps(
        [
            {"source": texts, "query_instruction": f"Find the {text} text"}
            for text in ("next", "last")
        ]
    )
    with caplog.at_level(logging.WARNING, "llm2comp"):
        pipeline.train(first_stage(tiny_recipe, instructed), tmp_path / "run", Console(quiet=True))
    warnings = [
        r.getMessage() for r in caplog.records if "prompts.query is empty" in r.getMessage()
    ]
    assert len(warnings) == 1
