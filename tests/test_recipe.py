"""Recipes: the shipped ones, overrides, and messages about mistakes."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from llm2comp import recipe as recipe_module
from llm2comp.data.pairs import add_instruction
from llm2comp.errors import UserError
from llm2comp.recipe import Pretext, load_recipe, recipe_path
from llm2comp.utils.yaml_files import Strict

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
FINETUNE = next(path for path in RECIPES if path.stem == "finetune")

MINIMAL = """
name: minimal
stages:
  - stage: pretext
    data: [{source: boolq-passages}]
    steps: 10
    batch_size: 2
    learning_rate: 1.0e-3
  - stage: unsupervised
    data: [{source: nlp-corpus-sentences}]
    steps: 5
    batch_size: 4
    learning_rate: 1.0e-4
"""


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "minimal.yaml"
    path.write_text(MINIMAL)
    return path


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_parses(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    stages = ["pretext", "unsupervised", "supervised"]
    assert [stage.stage for stage in recipe.stages] == (stages[2:] if recipe.base else stages)


@pytest.mark.parametrize(("given", "steps"), [("0", 0), ("6", 6), ("6.0", 6), ("0.1", 0.1)])
def test_a_warm_up_has_a_number_of_steps_or_a_share(given: str, steps: float) -> None:
    recipe = load_recipe(FINETUNE, [f"supervised.warmup_steps={given}"])
    assert (read := recipe.stages[0].warmup_steps) == steps
    assert type(read) is type(steps)  # so that recipes of older versions stay equal as text


def test_the_recipe_of_version_0_1_is_still_read() -> None:
    """Tables of the docs name it and its command."""
    recipe = load_recipe(ROOT / "docs" / "notes" / "smollm2-135m-0.1.yaml")
    assert [stage.steps for stage in recipe.stages] == [500, 24, 90]
    assert recipe.memory.scale == "none"


def test_the_promised_recipes_are_shipped() -> None:
    assert {path.stem for path in RECIPES} >= {"demo", "smollm2-135m", "llama2-7b", "mistral-7b"}


def test_llama2_has_the_settings_of_the_paper() -> None:
    recipe = load_recipe(recipe_path("llama2-7b"))
    pretext, unsupervised, supervised = recipe.stages
    assert recipe.memory.tokens == 8
    assert [stage.steps * stage.batch_size for stage in recipe.stages] == [32_000, 128_000, 204_800]
    assert [stage.learning_rate for stage in recipe.stages] == [1e-4, 3e-5, 1e-4]
    assert [stage.weight_decay for stage in recipe.stages] == [1e-5, 1e-3, 3e-4]
    assert [stage.max_grad_norm for stage in recipe.stages] == [2.0, 1.0, 0.0]
    assert unsupervised.temperature == supervised.temperature == 0.05
    assert "k_proj" not in pretext.lora.target_modules


def test_overrides_address_a_stage_by_name(minimal: Path) -> None:
    recipe = load_recipe(
        minimal, ["seed=3", "pretext.steps=99", "unsupervised.lora.r=4", "memory.tokens=2"]
    )
    assert recipe.seed == 3
    assert [stage.steps for stage in recipe.stages] == [99, 5]
    assert [stage.lora.r for stage in recipe.stages] == [16, 4]
    assert recipe.memory.tokens == 2


def test_an_override_of_one_stage_leaves_what_another_shares_with_it_by_an_alias() -> None:
    recipe = load_recipe(recipe_path("llama2-7b"), ["supervised.lora.r=4"])  # has `lora: *lora`
    assert [stage.lora.r for stage in recipe.stages] == [16, 16, 4]


def test_overrides_reach_into_lists(minimal: Path) -> None:
    recipe = load_recipe(minimal, ["pretext.data.0.source=texts.txt", "stages.1.batch_size=8"])
    assert recipe.stages[0].data[0].source == "texts.txt"
    assert recipe.stages[1].batch_size == 8


def test_the_value_of_an_override_is_yaml(minimal: Path) -> None:
    recipe = load_recipe(minimal, ["pretext.lora.target_modules=[q_proj, v_proj]"])
    assert recipe.stages[0].lora.target_modules == ["q_proj", "v_proj"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pretext.learning_rat=1", r"learning_rat.*did you mean 'learning_rate'"),
        ("memroy.tokens=4", r"memroy.*did you mean 'memory'"),
        ("pretext.steos=1", r": stages\.0\.pretext\.steos: unknown key; did you mean 'steps'\?$"),
        ("unsupervised.lora.rr=1", r"stages\.1\.unsupervised\.lora\.rr: .*did you mean 'r'"),
        ("memory.size=8", r"memory\.size: unknown key; use tokens, init, init_text, scale$"),
        ("pretext.steps=-1", r"steps.*greater than or equal to 0"),
        ("pretext.steps=many", r"steps: must be a whole number \(got 'many'\)$"),
        ("memory.tokens=33", r"tokens.*less than or equal to 32"),
        ("pretext.split.ramp_steps=5", r"ramp_steps needs start"),
        ("pretext.data=[]", r"data.*at least 1 item"),
        ("pretext.warmup_steps=1.5", r"warmup_steps: give a whole number, or a share below 1"),
        ("pretext.data=[", r"'pretext\.data=\[': the value is not YAML"),
        ("seed", r"'seed' is not of the form key=value"),
        ("=1", r"'=1' is not of the form key=value"),
        (" =1", r"' =1' is not of the form key=value"),
        ("memory..tokens=1", r"is not of the form key=value"),
        ("memory={tokens: 1, tokens: 2}", r"the key 'tokens' is there twice"),
        ("seed.deeper=1", r": seed: must be a whole number \(got a mapping\)$"),
        ("seed=-1", r": seed: must be greater than or equal to 0 \(got -1\)$"),
        ("seed=4294967296", r": seed: must be less than 4294967296 \(got 4294967296\)$"),
        ("pretext.learning_rate=.inf", r"learning_rate: must be a finite number \(got inf\)$"),
        ("stages.7.steps=1", r"'7' is not one of 0 to 1"),
        ("pretext.data.first.source=x", r"'first' is not one of 0 to 0"),
    ],
)
def test_a_wrong_override_is_named_in_one_line(minimal: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_recipe(minimal, [override])
    assert "\n" not in str(caught.value)


SETTINGS = "must be a mapping of settings"


@pytest.mark.parametrize("given", ["true", "false", "yes please", "3", "[1]"])
@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("backbone", rf"{SETTINGS} \(name, .*\); {{}} takes the defaults"),
        ("memory", rf"{SETTINGS} \(tokens, .*\); {{}} takes the defaults"),
        ("evaluation", rf"{SETTINGS} \(tasks, .*\); {{}} takes the defaults"),
        ("evaluation.during", rf"{SETTINGS} \(tasks, .*\); give every at least"),
        ("pretext.lora", rf"{SETTINGS} \(r, .*\); {{}} takes the defaults"),
        ("pretext.passages", rf"{SETTINGS} \(min_chars, .*\); {{}} takes the defaults"),
        ("pretext.split", rf"{SETTINGS} \(low, .*\); {{}} takes the defaults"),
        ("pretext.data.0", rf"{SETTINGS} \(source, .*\); give source at least"),
        ("pretext.data.0.columns", r"must be a mapping, such as {key: value}"),
        ("prompts", r"must be a mapping, such as {key: value}"),
        ("stages.0", rf"{SETTINGS}, such as {{stage: supervised, ...}}"),
        ("stages.2", rf"{SETTINGS}, such as {{stage: supervised, ...}}"),
        ("supervised.reading", rf"{SETTINGS} \(weight, passages\); {{}} takes the defaults"),
        ("supervised.mining", rf"{SETTINGS} \(negatives, .*\); {{}} takes the defaults"),
    ],
)
def test_a_value_where_settings_are_wanted_is_one_line_of_ours(
    tmp_path: Path, key: str, message: str, given: str
) -> None:
    """pydantic says "Input should be a valid dictionary or instance of Reading"."""
    path = tmp_path / "mine.yaml"
    stage = {"data": [{"source": "a"}], "steps": 1, "batch_size": 2, "learning_rate": 1}
    stages = [{"stage": name, **stage} for name in ("pretext", "unsupervised", "supervised")]
    path.write_text(yaml.safe_dump({"name": "mine", "stages": stages}))
    with pytest.raises(UserError) as error:
        load_recipe(path, [f"{key}={given}"])
    named = key.replace("pretext.", r"stages\.0\.pretext\.")
    named = named.replace("supervised.", r"stages\.2\.supervised\.")
    value = re.escape(repr(yaml.safe_load(given)))
    said = re.escape(f"recipe {path}: ") + rf"{named}: {message} \(got {value}\)"
    assert re.fullmatch(said, str(error.value))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages=pretext", r"stages: must be a list, such as \[first, second\] \(got 'pretext'\)"),
        ("stages={}", r"stages: must be a list, .* \(got a mapping\)"),
        ("stages=[{steps: 1}]", r"stages\.0: lacks the key 'stage', which says what"),
        ("pretext.stage=third", r"stages\.0: 'stage' is third, and it must be one of 'pretext', "),
        ("pretext.steps={a: 1}", r"steps: must be a whole number \(got a mapping\)"),
        ("pretext.compile=maybe", r"compile: must be true or false \(got 'maybe'\)"),
        ("pretext.steps=true", r"steps: must be a whole number \(got True\)"),
        ("unsupervised.matryoshka=[true]", r"matryoshka: must be a whole number \(got \[True\]\)"),
        ("pretext.learning_rate=yes", r"learning_rate: must be a number \(got True\)"),
        ("pretext.learning_rate=fast", r"learning_rate: must be a number \(got 'fast'\)"),
        (
            "pretext.attention=both",
            r"attention: must be 'causal' or 'bidirectional' \(got 'both'\)",
        ),
        ("name=3", r"name: must be a text \(got 3\)"),
    ],
)
def test_a_value_of_another_kind_is_said_in_our_words(
    minimal: Path, override: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(minimal, [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be a mapping"),
        ("- 1\n", "must be a mapping"),
        ("name: [unclosed\n", "is not YAML"),
        ("name: x\n", ": stages: is missing$"),
        (MINIMAL.replace("stage: pretext", "stage: pretest"), "'stage' is pretest, and it must be"),
        (MINIMAL.replace("stage: pretext", "stage: supervised"), "in the order"),
    ],
)
def test_a_broken_file_is_named_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_recipe(path)
    assert "broken.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_recipe_in_another_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes(MINIMAL.replace("minimal", "café").encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.yaml is not UTF-8"):
        load_recipe(path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_recipe_in_utf_16_is_named(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "wide.yaml"
    path.write_text(MINIMAL, encoding=encoding)
    with pytest.raises(UserError, match=r"wide\.yaml is not UTF-8; save it as UTF-8"):
        load_recipe(path)


def test_a_key_that_is_there_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text(MINIMAL.replace("    steps: 10\n", "    steps: 10\n    steps: 20\n"))
    with pytest.raises(UserError, match=r"twice\.yaml:7: the key 'steps' is there twice"):
        load_recipe(path)
    path.write_text(MINIMAL.replace("{source: boolq-passages}", "{source: a, 'source': b}"))
    with pytest.raises(UserError, match=r"twice\.yaml:5: the key 'source' is there twice"):
        load_recipe(path)


def test_merged_keys_are_not_keys_that_are_there_twice(tmp_path: Path) -> None:
    path = tmp_path / "merged.yaml"
    path.write_text(
        "name: merged\n"
        "stages:\n"
        "  - &first {stage: pretext, data: [{source: a.txt}], steps: 1, batch_size: 2, "
        "learning_rate: 1}\n"
        "  - &second {<<: *first, stage: unsupervised, steps: 2}\n"
        "  - {<<: *second, stage: supervised, steps: 3}\n"
    )
    assert [stage.steps for stage in load_recipe(path).stages] == [1, 2, 3]


def test_yaml_that_python_cannot_hold_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    for text in ("name: 2020-13-45\n", "name: " + "[" * 1000 + "\n"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"odd\.yaml is not YAML") as raised:
            load_recipe(path)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("blank", ["''", "'  '", "'\u00a0'"])
@pytest.mark.parametrize(
    "key",
    [
        "name",
        "backbone.name",
        "backbone.revision",
        "memory.init_text",
        "pretext.data.0.source",
        "pretext.data.0.split",
        "pretext.data.0.columns.text",
        "pretext.lora.target_modules.0",
        "pretext.start_from",
        "evaluation.tasks.0",
        "evaluation.baselines.0",
    ],
)
def test_a_blank_name_is_refused(minimal: Path, key: str, blank: str) -> None:
    lists = ["pretext.lora.target_modules=[q_proj]", "evaluation={tasks: [a], baselines: [b]}"]
    with pytest.raises(UserError, match=r"is blank \(got '") as raised:
        load_recipe(minimal, [*lists, f"{key}={blank}"])
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="is blank"):
        load_recipe(minimal, [f"pretext.data.0.columns={{{blank}: body}}"])


def test_a_prompt_is_empty_or_holds_text(minimal: Path) -> None:
    for key in ("prompts.query", "pretext.data.0.query_instruction"):
        load_recipe(minimal, [f"{key}=''"])
        with pytest.raises(UserError, match="holds only spaces; use '' for none"):
            load_recipe(minimal, [f"{key}='  '"])


def models(parent: type[Strict]) -> Iterator[type[Strict]]:
    for model in parent.__subclasses__():
        yield model
        yield from models(model)


@pytest.mark.parametrize(
    "model",
    [model for model in models(Strict) if model.__module__.startswith(recipe_module.__name__)],
    ids=lambda model: model.__name__,
)
def test_every_key_is_explained(model: type[Strict]) -> None:
    assert [key for key, field in model.model_fields.items() if not field.description] == []


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["unsupervised.attention_dropout=0", "unsupervised.lora.dropout=0"],
            "stages.1.unsupervised: without dropout both views are the same; set attention_dropout "
            "or lora.dropout above 0, or views: crop",
        ),
        (
            ["memory.tokens=1", "evaluation.vectors=k"],
            "evaluation.vectors: k needs several memory tokens, and memory.tokens is 1",
        ),
    ],
    ids=["views", "vectors"],
)
def test_settings_that_do_not_go_together_are_refused_and_not_repeated(
    minimal: Path, overrides: list[str], said: str
) -> None:
    with pytest.raises(UserError) as error:
        load_recipe(minimal, overrides)
    assert str(error.value) == f"recipe {minimal}: {said}"


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        load_recipe(tmp_path / "absent.yaml")


def test_a_shipped_recipe_is_found_by_name_and_a_file_by_path(minimal: Path) -> None:
    assert load_recipe(recipe_path("demo")).name == "demo"
    assert recipe_path(str(minimal)) == minimal
    with pytest.raises(UserError, match=r"shipped are .*smollm2-135m"):
        recipe_path("smollm3")


def test_the_shipped_stage_1_begins_causal() -> None:
    stage = load_recipe(recipe_path("smollm2-135m")).stages[0]
    assert isinstance(stage, Pretext)
    assert stage.attention == "causal"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_queries_are_encoded_as_they_were_trained(path: Path) -> None:
    """A prompt is a prefix, so it can be all of `instruction:query` but the line break."""
    recipe = load_recipe(path)
    assert not recipe.lacks_query_prompt
    trained = {s.query_instruction for stage in recipe.stages for s in stage.data} - {""}
    formula = {add_instruction(instruction, "") for instruction in trained}
    assert recipe.prompts["query"] in {text.removesuffix("\n") for text in formula or {""}}
    assert recipe.prompts["document"] == ""


def test_several_instructions_without_a_query_prompt_are_noticed(minimal: Path) -> None:
    one = {"source": "a.txt", "query_instruction": "Find the answer"}
    other = one | {"query_instruction": "Find the question"}
    assert not load_recipe(minimal, [f"stages.0.data={[one, one]}"]).lacks_query_prompt
    instructed = [f"stages.0.data={[one, other]}"]
    assert load_recipe(minimal, instructed).lacks_query_prompt
    prompted = [*instructed, "prompts.query='Find the answer:'"]
    assert not load_recipe(minimal, prompted).lacks_query_prompt
    assert not load_recipe(minimal).lacks_query_prompt
