"""What an encoder lacks is refused by recipe and key, and the run leaves no folder."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from base_encoders import fine_tuning
from rich.console import Console
from transformers import AutoModelForCausalLM

from llm2comp.errors import UserError
from llm2comp.model.lineage import Lineage
from llm2comp.recipe import Recipe, load_recipe
from llm2comp.training import pipeline
from llm2comp.training.planning.fitting import lineage_before, require_fitting
from llm2comp.training.planning.plan import plan_run

READING = "supervised.reading.weight=1"
RELEASED = "smollm2-135m-llm2comp"
MNTP = ("pretext.objective=mntp", "pretext.attention=bidirectional")


@pytest.fixture(scope="module")
def ours(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder folder with four memory tokens, made of a local backbone."""
    recipe = load_recipe(tiny_recipe, ["pretext.steps=0"])
    out = tmp_path_factory.mktemp("runs") / "tiny"
    return pipeline.train(recipe.model_copy(update={"stages": recipe.stages[:1]}), out)


def refused(recipe: Recipe, out: Path) -> str:
    """Run a recipe that must be refused without a trace, and return the message."""
    with pytest.raises(UserError) as error:
        pipeline.train(recipe, out, Console(quiet=True))
    assert not out.parent.exists()
    return str(error.value)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "one"


@pytest.fixture
def no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a run asks for its folder."""

    def alone_in(_: Path) -> None:
        pytest.fail("the run had a folder before it was refused")

    monkeypatch.setattr(pipeline, "alone_in", alone_in)


@pytest.mark.usefixtures("no_folder")
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([READING, *MNTP], "supervised.reading: tiny has no memory to read: its stage 1 was"),
        ([READING, "backbone.load_in_4bit=true"], "supervised.reading is not trained on weights"),
        (["supervised.matryoshka_tokens=[5, 4]"], "supervised.matryoshka_tokens: 5 is more than"),
        (["unsupervised.matryoshka_tokens=[2]"], "unsupervised.matryoshka_tokens: the embedding"),
        (["supervised.vectors=k", *MNTP], "supervised.vectors: k needs an encoder with several"),
        (["evaluation.vectors=k", *MNTP], "evaluation.vectors: k needs an encoder with several"),
        (["pretext.objective=none"], "objective 'none' is not one of"),
    ],
)
def test_what_stage_1_will_not_give_is_refused(
    tiny_recipe: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    overrides: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(pipeline, "require_trainable", lambda _: None)  # bitsandbytes
    recipe = load_recipe(tiny_recipe, overrides)
    said = refused(recipe, out)
    assert said.startswith(f"recipe tiny: {message}")
    with pytest.raises(UserError) as error:
        plan_run(recipe)
    assert str(error.value) == said


@pytest.mark.usefixtures("no_folder")
def test_start_from_the_encoder_of_a_later_stage_is_refused(
    ours: Path, tiny_recipe: Path, out: Path, tmp_path: Path
) -> None:
    """Its adapter has the names and shapes of that of stage 1."""
    later = tmp_path / "first" / "model"
    shutil.copytree(ours, later)
    lineage = Lineage.read(later)
    last = lineage.stages[0].model_copy(update={"stage": "supervised"})
    lineage.after(last).write(later)
    for name, right in (
        (str(later), str(tmp_path / "first" / "1-pretext")),
        (f"{RELEASED}/3-supervised", f"{RELEASED}/1-pretext"),
    ):
        recipe = load_recipe(tiny_recipe, [f"pretext.start_from={name}"])
        said = refused(recipe, out)
        assert said.startswith(f"recipe tiny: pretext.start_from: {name} has the adapter of its")
        assert said.endswith(f"give the folder of stage 1, in its run {right}")
        with pytest.raises(UserError) as error:
            plan_run(recipe)
        assert str(error.value) == said


@pytest.mark.usefixtures("no_folder")
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["backbone.name=smollm2-135m"], 'backbone.name "tiny-llama", and this recipe has "smoll'),
        (["backbone.add_bos=true"], "backbone.add_bos null, and this recipe has true"),
        (["memory.scale=embeddings"], 'memory.scale "none", and this recipe has "embeddings"'),
        ([*MNTP], 'the prompt format "memory", and this recipe has "text"'),
    ],
)
def test_start_from_a_stage_1_of_another_kind_is_refused(
    ours: Path, tiny_recipe: Path, out: Path, overrides: list[str], message: str
) -> None:
    recipe = load_recipe(tiny_recipe, [f"pretext.start_from={ours}", *overrides])
    said = refused(recipe, out)
    assert said.startswith(f"recipe tiny: pretext.start_from: {ours} was trained with {message}")


def test_start_from_a_stage_1_of_this_kind_fits(ours: Path, tiny_recipe: Path) -> None:
    require(load_recipe(tiny_recipe, [f"pretext.start_from={ours}"]))
    packaged = [
        "backbone.name=smollm2-135m",
        "backbone.add_bos=true",
        "memory.tokens=8",
        "memory.scale=embeddings",
    ]
    for name in (RELEASED, f"{RELEASED}/1-pretext"):
        require(load_recipe(tiny_recipe, [f"pretext.start_from={name}", *packaged]))


def require(recipe: Recipe) -> None:
    require_fitting(recipe, lineage_before(recipe))


LACKING = {
    "reading: {}": "supervised.reading: BASE has no memory to read: it began as an encoder of",
    "vectors: k": "supervised.vectors: k needs an encoder with several memory tokens, and this one",
    "matryoshka_tokens: [2, 1]": "supervised.matryoshka_tokens: it needs an encoder with several",
    "attention: causal": "supervised.attention: the attention of BASE stays as it is",
}


@pytest.mark.usefixtures("no_folder")
@pytest.mark.parametrize("setting", LACKING)
def test_what_an_encoder_of_others_lacks_is_refused(
    bert: Path, pairs: Path, out: Path, setting: str
) -> None:
    key, value = setting.split(": ", 1)
    said = refused(fine_tuning(bert, pairs, f"supervised.{key}={value}"), out)
    assert said.startswith(f"recipe tuned: {LACKING[setting]}".replace("BASE", str(bert)))


@pytest.mark.usefixtures("no_folder")
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("supervised.matryoshka_tokens=[8, 4]", "supervised.matryoshka_tokens: 8 is more than"),
        ("supervised.reading={}", "supervised.reading: the memory of .* cannot be had .* put the"),
        ("report_to=[nothing]", "report_to: 'nothing' is not one of"),
    ],
)
def test_what_a_base_of_ours_lacks_is_refused(
    ours: Path, pairs: Path, out: Path, override: str, message: str
) -> None:
    assert "--backbone" not in refused_as(message, fine_tuning(ours, pairs, override), out)


def refused_as(message: str, recipe: Recipe, out: Path) -> str:
    with pytest.raises(UserError, match=message) as error:
        pipeline.train(recipe, out, Console(quiet=True))
    assert not out.parent.exists()
    return str(error.value)


def test_another_backbone_of_the_name_is_refused_without_a_folder(
    ours: Path,
    tiny_backbone: Path,
    pairs: Path,
    out: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The encoder must be loaded to see it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_backbone, tiny_backbone.name)
    other = AutoModelForCausalLM.from_pretrained(tiny_backbone.name)
    other.get_input_embeddings().weight.data.mul_(2)
    other.save_pretrained(tiny_backbone.name)
    recipe = fine_tuning(ours, pairs, "supervised.reading={}")
    said = refused_as(
        r"^recipe tuned: supervised\.reading: .* the token embeddings differ", recipe, out
    )
    assert "--backbone" not in said


def test_dimensions_of_a_loaded_encoder_are_refused_without_a_folder(
    bert: Path, pairs: Path, out: Path
) -> None:
    said = refused(fine_tuning(bert, pairs, "supervised.matryoshka=[99, 16]"), out)
    assert said.startswith("recipe tuned: supervised.matryoshka: 99 is more than the 16 dimensions")


def test_a_folder_that_was_there_stays(bert: Path, pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    recipe = fine_tuning(bert, pairs, "supervised.matryoshka=[99, 16]")
    with pytest.raises(UserError, match="more than the 16 dimensions"):
        pipeline.train(recipe, tmp_path / "run", Console(quiet=True))
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_a_run_that_has_labels_of_a_teacher_keeps_its_folder(
    bert: Path, pairs: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        labels = out / ".3-supervised.work" / "rows" / "teacher"
        labels.mkdir(parents=True)
        raise UserError("after the labels")

    monkeypatch.setattr(pipeline, "train_supervised", failing)
    with pytest.raises(UserError, match="after the labels"):
        pipeline.train(fine_tuning(bert, pairs), out, Console(quiet=True))
    assert (out / "recipe.yaml").exists()
