"""The lineage in an encoder folder, in today's format and in that of llm2comp 0.1."""

import json
from pathlib import Path
from typing import Any

import pytest

from llm2comp.errors import UserError
from llm2comp.model.lineage import FORMAT_VERSION, LINEAGE, Lineage, StageRecord
from llm2comp.recipe import Pretext, Recipe

STAGE = {
    "stage": "pretext",
    "data": [{"source": "x.txt"}],
    "steps": 1,
    "batch_size": 1,
    "learning_rate": 1.0,
}


@pytest.fixture
def lineage() -> Lineage:
    recipe = Recipe.model_validate({"name": "tiny", "stages": [STAGE]})
    record = StageRecord.of(recipe.stages[0], causal=False, lora={})
    return Lineage.start(recipe, "memory").after(record)


def test_a_written_lineage_is_read_again(lineage: Lineage, tmp_path: Path) -> None:
    lineage.write(tmp_path)
    assert Lineage.read(tmp_path) == lineage
    assert json.loads((tmp_path / LINEAGE).read_text())["format_version"] == FORMAT_VERSION


def test_a_recorded_stage_is_that_of_the_recipe(lineage: Lineage) -> None:
    (record,) = lineage.stages
    assert not record.causal
    after = {"causal", "layers", "attending", "kept_step", "prompts", "row_prompts"}
    after |= {"matryoshka", "matryoshka_tokens", "reading"}
    stage = Pretext.model_validate(record.model_dump(exclude=after))
    assert stage == Pretext.model_validate(STAGE)


def test_until_leaves_later_stages_out(lineage: Lineage) -> None:
    longer = lineage.after(lineage.stages[0].model_copy(update={"stage": "unsupervised"}))
    assert [stage.stage for stage in longer.stages] == ["pretext", "unsupervised"]
    assert longer.until(1) == lineage


@pytest.mark.parametrize(
    ("objective", "prompt_format"),
    [
        ("distillation", "memory"),
        ("continuation", "memory"),
        ("reconstruction", "memory"),
        ("mntp", "text"),
        ("embedding_prediction", "summarize"),
    ],
)
def test_the_format_of_version_1_follows_from_its_objective(
    lineage: Lineage, tmp_path: Path, objective: str, prompt_format: str
) -> None:
    old = json.loads(lineage.model_dump_json())
    del old["format_version"], old["prompt_format"]
    old["stages"][0]["objective"] = objective
    (tmp_path / LINEAGE).write_text(json.dumps(old))
    assert Lineage.read(tmp_path).prompt_format == prompt_format


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": FORMAT_VERSION + 1}, "is of a later llm2comp"),
        ({"prompt_format": "haiku"}, "'haiku' is unknown"),
        ({"backbone": 1}, "backbone must be a mapping of settings"),
    ],
)
def test_a_lineage_that_cannot_be_used_is_one_clear_line(
    lineage: Lineage, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    content = json.loads(lineage.model_dump_json()) | changes
    (tmp_path / LINEAGE).write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        Lineage.read(tmp_path)
    assert str(tmp_path / LINEAGE) in str(caught.value)


def test_a_folder_of_another_program_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not an encoder folder of llm2comp"):
        Lineage.read(tmp_path)


def test_instructions_are_found_in_prompts_and_in_queries(lineage: Lineage) -> None:
    assert not lineage.trained_with_instructions
    prompted = lineage.model_copy(update={"prompts": {"query": "Q: ", "document": ""}})
    assert prompted.trained_with_instructions
    raw = STAGE | {"data": [{"source": "x.txt", "query_instruction": "Find"}], "causal": True}
    asked = lineage.after(StageRecord.model_validate(raw))
    assert asked.trained_with_instructions
