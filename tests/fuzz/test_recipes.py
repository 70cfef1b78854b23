"""Recipes and their overrides: a recipe, or one line that says what is wrong."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from cases import case, cases, run
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import changed, damaged, texts

from llm2comp import api
from llm2comp.errors import UserError
from llm2comp.recipe import Recipe, parse_recipe
from llm2comp.training.run_folder import as_yaml

SOURCE = {"source": "texts.txt", "split": "train", "columns": {"text": "text"}, "weight": 1.0}
COMMON = {"data": [SOURCE], "steps": 1, "batch_size": 2, "learning_rate": 0.01, "lora": {"r": 4}}
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "seed": 0,
    "backbone": {"name": "backbone", "dtype": "float32", "revision": None, "add_bos": None},
    "memory": {"tokens": 4, "init": "random", "scale": "none"},
    "prompts": {"query": "", "document": ""},
    "max_length": 64,
    "stages": [
        {
            "stage": "pretext",
            **COMMON,
            "passages": {"min_chars": 10, "max_tokens": 60, "crop": True},
            "split": {"low": 5, "high": 10},
        },
        {"stage": "unsupervised", **COMMON, "attention_dropout": 0.1, "views": "dropout"},
        {"stage": "supervised", **COMMON, "temperature": 0.05, "mini_batch_tokens": None},
    ],
    "evaluation": {"tasks": [], "quick": True, "baselines": []},
    "on_bad_row": "fail",
}
TEXT = yaml.safe_dump(RECIPE, sort_keys=False)
ODD_YAML = [
    "",
    "---",
    "--- a\n--- b",
    "null",
    "- a",
    "3",
    "a: *missing",
    "a: &a [*a]",
    "a: &a {b: *a}",
    "{",
    "a: b: c",
    "\ta: b",
    "? [a]\n: b",
    "{}: {}",
    "1: 2",
    "2001-01-01: 1",
    "a: !!python/object:os.system {}",
    "a: !!binary abc=",
    "a: !!set {x, y}",
    "a: 2001-99-99",
    "a: 1e400",
    "a: 190:20:30",
    "a: 0b2",
    "<<: 3",
    "<<: {name: x}\nname: y",
    "a: 1\na: 2",
    "[" * 3000,
    "{a: " * 1500,
    "a: " + "9" * 5000,
    "%YAML 9.9\n---\na: 1",
    "a: \x00",
    "a: \ud800",
    "&a a: *a",
]
KEYS = [
    "name",
    "seed",
    "memory.tokens",
    "memory",
    "stages",
    "stages.0",
    "stages.3",
    "stages.-1",
    "stages.²",
    "stages.٣",
    "stages.0.data.0.source",
    "pretext.steps",
    "pretext.learning_rate",
    "pretext.data.0.columns.text",
    "supervised.temperature",
    "unsupervised",
    "pretext",
    "backbone.name",
    "name.x.y",
    "a.b.c.d",
    "",
    ".",
    "..",
    "=",
]
VALUES = [
    "1",
    "0",
    "nan",
    ".nan",
    "1e400",
    "[]",
    "{}",
    "null",
    "x: y",
    "[",
    "*a",
    "!!binary x",
    "&a [*a]",
    "[" * 2000,
    "9" * 5000,
    "\x00",
    "- a",
]
overrides = st.lists(
    st.one_of(
        st.builds("{}={}".format, st.sampled_from(KEYS), st.one_of(st.sampled_from(VALUES), texts)),
        texts,
    ),
    max_size=3,
)


@pytest.fixture
def _no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `train` end when the recipe is read, and only a good one can be written and read back."""

    def stop(recipe: Recipe, *_: object) -> None:
        again = parse_recipe(yaml.safe_load(as_yaml(recipe).encode()), [], "recipe")
        assert repr(again) == repr(recipe)
        raise UserError("read")

    monkeypatch.setattr(api, "train", stop)


@pytest.mark.usefixtures("_no_training")
@cases(300)
@given(recipe=changed(RECIPE), changes=st.one_of(st.just([]), overrides))
def test_a_changed_recipe_is_read_or_refused(recipe: Any, changes: list[str]) -> None:
    with case("recipes: values"):
        Path("recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
        run(["train", "recipe.yaml", "--out", "run", "--", *changes])


@pytest.mark.usefixtures("_no_training")
@cases(200)
@given(
    content=st.one_of(
        damaged(TEXT.encode()),
        st.sampled_from(ODD_YAML).map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.sampled_from(ODD_YAML).map(lambda t: f"{TEXT}{t}\n".encode("utf-8", "surrogatepass")),
        st.binary(max_size=50),
    )
)
@example(content=f"{TEXT}a: &a [*a]\n".encode())
@example(content=f'{TEXT}"\\ud800": 1\n'.encode())
@example(content=TEXT.replace("name: tiny", 'name: "\\ud800"').encode())
def test_a_damaged_recipe_is_read_or_refused(content: bytes) -> None:
    with case("recipes: bytes"):
        Path("recipe.yaml").write_bytes(content)
        run(["train", "recipe.yaml", "--out", "run"])


@pytest.mark.usefixtures("_no_training")
@cases(200)
@given(changes=overrides)
@example(changes=["stages.²=1"])
@example(changes=["stages.0.steps." + "9" * 5000 + "=1"])
@example(changes=["word " * 3000])
@example(changes=["\udcff=1"])
@example(changes=['name="\\ud800"'])
def test_odd_overrides_are_applied_or_refused(changes: list[str]) -> None:
    with case("recipes: overrides"):
        Path("recipe.yaml").write_text(TEXT, encoding="utf-8")
        run(["train", "recipe.yaml", "--out", "run", "--", *changes])
