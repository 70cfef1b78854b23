"""`llm2comp data show`: what each stage reads, as the model reads it."""

import json
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer
from typer.testing import CliRunner

from llm2comp import recipe
from llm2comp.analysis.preview import BETWEEN, Preview, previews, table
from llm2comp.cli.app import app
from llm2comp.errors import UserError
from llm2comp.recipe import Recipe
from llm2comp.training import pipeline

PAIRS = [
    {"query": "one", "pos": ["the first", "a first"], "neg": ["zero", "two"], "prompt": "find: "},
    {"query": "two", "pos": ["the second"], "neg": ["a first one"], "prompt": "find: "},
    {"query": "two", "pos": ["the second "], "neg": ["a first one"], "prompt": "find: "},
    {"query": "three", "pos": [""]},
]


@pytest.fixture
def shown(tiny_recipe: Path, tmp_path: Path) -> Recipe:
    """A recipe whose third stage has rows of FlagEmbedding, one twice and one bad."""
    path = tmp_path / "mined.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in PAIRS))
    return recipe.load_recipe(
        tiny_recipe,
        [
            f"supervised.data=[{{source: {path}, negatives: 2}}]",
            "supervised.batch_size=3",
            "supervised.steps=2",
            "supervised.max_length=4",
            "on_bad_row=skip",
        ],
    )


def by_stage(found: list[Preview]) -> dict[str, Preview]:
    return {one.stage: one for one in found}


def test_rows_are_shown_as_the_trained_encoder_reads_them(
    shown: Recipe, tiny_recipe: Path, tmp_path: Path
) -> None:
    found = by_stage(list(previews(shown)))
    assert list(found) == ["pretext", "unsupervised", "supervised"]
    pairs = found["supervised"]
    assert pairs.rows == 3
    assert pairs.left_out == {"skipped": 1, "repeated": 1}
    stages = recipe.load_recipe(tiny_recipe, ["pretext.steps=1"]).stages[:1]
    trained = pipeline.train(shown.model_copy(update={"stages": stages}), tmp_path / "run")
    encoder = SentenceTransformer(str(trained), device="cpu")
    specials = encoder.tokenizer.num_special_tokens_to_add()
    assert pairs.examples
    for row in pairs.examples:
        for column, texts in row.items():
            for text in texts:
                assert text.endswith(BETWEEN.join(f"<|memory_{i}|>" for i in range(4)))
                if column == "anchor":
                    assert text.replace(BETWEEN, "").removeprefix("<s>").startswith("find")
    longest = 4 + specials
    assert all(length <= longest for lengths in pairs.lengths.values() for length in lengths)
    assert len(pairs.lengths["negative"]) == 2 + 2 + 1
    queries = [f"find: {row['query']}" for row in PAIRS[:2]]
    expected = [len(ids) for ids in encoder.tokenizer(queries)["input_ids"]]
    assert pairs.cut["anchor"] == 2 * (expected[0] > longest) + (expected[1] > longest)
    read = sorted(set(pairs.lengths["anchor"]))
    assert read == sorted({min(length, longest) for length in expected})


def test_the_table_counts_rows_lengths_and_what_was_left_out(shown: Recipe) -> None:
    cells = table(previews(shown))
    rows = [dict(zip(cells[0], row, strict=True)) for row in cells[1:]]
    assert [row["column"] for row in rows] == ["text", "text", "anchor", "positive", "negative"]
    assert rows[2]["rows"] == "3"
    assert rows[2]["left out"] == "1 bad row, 1 row or text that is there twice"


def test_passages_that_are_cut_are_counted(tiny_recipe: Path) -> None:
    small = ["pretext.passages.max_tokens=4", "pretext.split.low=1", "pretext.split.high=2"]
    small.append("pretext.passages.crop=true")
    found = by_stage(list(previews(recipe.load_recipe(tiny_recipe, small))))["pretext"]
    assert found.cut["text"] == found.rows
    assert max(found.lengths["text"]) == min(found.lengths["text"])


def test_the_command_shows_them_and_writes_nothing(
    shown: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import yaml

    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(shown.model_dump(mode="json", exclude_unset=True)))
    before = sorted(tmp_path.iterdir())
    result = CliRunner().invoke(app, ["data", "show", str(file)])
    assert result.exit_code == 0, result.output
    assert "supervised, " in result.output
    assert "<|memory_3|>" in result.output
    assert "1 row or text that is there twice" in result.output
    assert sorted(tmp_path.iterdir()) == before
    result = CliRunner().invoke(app, ["data", "show", str(file), "supervised.data.0.source=no.csv"])
    assert result.exit_code == 2
    assert "no.csv: cannot be read: No such file" in result.output


def test_the_remedy_for_a_bad_row_is_one_that_the_command_takes(
    shown: Recipe, tmp_path: Path
) -> None:
    import yaml

    file = tmp_path / "recipe.yaml"
    content = shown.model_dump(mode="json", exclude_unset=True)
    del content["on_bad_row"]
    file.write_text(yaml.safe_dump(content))
    command = ["data", "show", str(file)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert "correct the row, or set on_bad_row=skip in a recipe" in " ".join(result.output.split())
    assert CliRunner().invoke(app, [*command, "on_bad_row=skip"]).exit_code == 0


def test_stages_without_an_encoder_to_begin_with_are_refused(shown: Recipe) -> None:
    with pytest.raises(UserError, match="supervised needs an encoder; set base, or put pretext"):
        list(previews(shown.model_copy(update={"stages": shown.stages[2:]})))


def test_with_a_base_its_prompts_are_shown(
    shown: Recipe, tiny_recipe: Path, tmp_path: Path
) -> None:
    first = recipe.load_recipe(tiny_recipe, ["pretext.steps=1", "prompts.document='doc: '"])
    folder = pipeline.train(first.model_copy(update={"stages": first.stages[:1]}), tmp_path / "run")
    content = shown.model_dump(mode="json", exclude_unset=True)
    content = {"name": "tuned", "base": str(folder), "stages": content["stages"][2:]}
    tuned = Recipe.model_validate(content | {"on_bad_row": "skip"})
    (pairs,) = previews(tuned)
    assert pairs.examples
    for row in pairs.examples:
        for text in (*row["positive"], *row["negative"]):
            assert text.replace(BETWEEN, "").removeprefix("<s>").startswith("doc")
