"""What is read of texts: equal to the watch of training, its controls, and its words."""

import json
import math
from pathlib import Path
from statistics import mean

import pytest
import torch

import llm2comp
from llm2comp.analysis.reading import texts as reading
from llm2comp.errors import UserError
from llm2comp.inference.reading.going_on import Sampling
from llm2comp.inference.reading.reader import Reader
from llm2comp.model import released
from llm2comp.recipe import Pretext, Recipe, load_recipe
from llm2comp.training import pipeline, pretext
from llm2comp.training.monitoring import held_out

TEXTS = [
    "Vitamin D is a group of fat-soluble compounds responsible for increasing the intestinal "
    "absorption of calcium, magnesium and phosphate. In humans, the most important compounds are "
    "vitamin D3 and vitamin D2.",
    "The museum keeps a hoard of Roman coins that a farmer found in a field near the harbour. Most "
    "of the coins are of silver, and the oldest of them show the head of the emperor Augustus.",
    "Whales are mammals that live in the sea. They come to the surface to breathe air through the "
    "blowhole on the top of the head, and whales feed their young with milk.",
]
TRAINED = {
    "continuation": ["pretext.objective=continuation"],
    "distillation": ["pretext.objective=distillation", "memory.scale=embeddings"],
    "reconstruction": ["pretext.objective=reconstruction", "pretext.passages.max_tokens=30"],
}


@pytest.fixture(scope="module")
def runs(
    tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Recipe, Path]]:
    """One stage 1 for each objective, of a few steps."""
    made = {}
    for objective, overrides in TRAINED.items():
        recipe = load_recipe(tiny_recipe, ["pretext.steps=20", "seed=1", *overrides])
        recipe = recipe.model_copy(update={"stages": recipe.stages[:1]})
        out = tmp_path_factory.mktemp("runs") / objective
        pipeline.train(recipe, out)
        made[objective] = (recipe, out / "1-pretext")
    return made


@pytest.fixture(scope="module")
def passages(tiny_recipe: Path) -> list[str]:
    return (tiny_recipe.parent / "texts.txt").read_text().splitlines()[:19]


@pytest.mark.parametrize("objective", TRAINED)
def test_the_numbers_equal_the_watch_of_training(
    objective: str,
    runs: dict[str, tuple[Recipe, Path]],
    passages: list[str],
    tiny_backbone: Path,
) -> None:
    """Nineteen passages are a batch of sixteen and one of three, of different lengths."""
    recipe, folder = runs[objective]
    reader = Reader.open(str(folder), "float32", tiny_backbone)
    ids = [ids[: 30 + row] for row, ids in enumerate(reader.tokens(passages))]
    cut, splits = held_out.cut(ids, whole_passage=reader.says_again)
    compressed = [text[:split] for text, split in zip(cut, splits, strict=True)]
    targets = [
        text if reader.says_again else text[split:] for text, split in zip(cut, splits, strict=True)
    ]
    measured = reading.measure(reader, compressed, targets)

    watch = watched(recipe, folder, ids)
    require_equal(measured, watch, divergences=objective == "distillation")


def watched(recipe: Recipe, folder: Path, ids: list[list[int]]) -> held_out.HeldOut:
    """Measure passages as the watch of training does, with the adapter that is not merged."""
    (stage,) = recipe.stages
    assert isinstance(stage, Pretext)
    model, tokenizer, _ = pretext._extended_backbone(recipe, stage, torch.float32)
    trained, collator = pretext.pretext_model(recipe, stage, model, tokenizer)
    trained.compressor.load_adapter(released.adapter_of(str(folder)))
    batches = pretext._held_out_batches(ids, trained.objective, collator)
    assert [len(batch.input_ids) for batch in batches] == [16, 3]
    return held_out.measure(trained.compressor, trained.objective, batches)


def require_equal(
    measured: list[tuple[reading.Values, reading.Values]],
    watch: held_out.HeldOut,
    *,
    divergences: bool,
) -> None:
    for given, expected in (
        ("memory", watch.matched),
        ("other", watch.mismatched),
        ("zeroed", watch.zeroed),
        ("last", watch.last_tokens),
    ):
        own = mean(mean(text[divergences][given]) for text in measured)
        assert own == pytest.approx(expected, abs=2e-5), given


@pytest.mark.exhaustive
def test_the_numbers_of_the_released_stage_1_equal_the_watch(
    passages: list[str], sentences: list[str]
) -> None:
    """The same as above for the encoder that users have; it needs the backbone in the cache."""
    name = "smollm2-135m-llm2comp/1-pretext"
    try:
        reader = Reader.open(name, "float32")
    except UserError as error:
        pytest.skip(str(error))
    (record,) = reader.lineage.stages
    settings = {key: value for key, value in record if key in Pretext.model_fields}
    settings |= {key: v for key, v in (record.model_extra or {}).items() if key != "causal"}
    stage = Pretext.model_validate(settings | {"data": [{"source": "x"}]})
    recipe = Recipe.model_validate(
        {"name": "released", "backbone": reader.lineage.backbone, "memory": reader.lineage.memory}
        | {"stages": [stage]}
    )
    texts = [
        f"{text} {sentences[row % 8]} {sentences[row % 5]}" for row, text in enumerate(passages)
    ]
    ids = [ids[:64] for ids in reader.tokens(texts)]
    cut, splits = held_out.cut(ids)
    measured = reading.measure(
        reader,
        [text[:split] for text, split in zip(cut, splits, strict=True)],
        [text[split:] for text, split in zip(cut, splits, strict=True)],
    )
    for control in ("other", "shuffled", "zeroed", "nothing"):
        own, other = (
            mean(mean(text[1][given]) for text in measured) for given in ("memory", control)
        )
        assert own < other, control
    require_equal(measured, watched(recipe, Path(name), ids), divergences=True)


def test_memory_is_read_where_stage_1_was_short(
    runs: dict[str, tuple[Recipe, Path]], passages: list[str], tiny_backbone: Path
) -> None:
    """Twenty steps of a tiny model teach it what texts have in common, and not one from another."""
    reader = Reader.open(str(runs["reconstruction"][1]), "float32", tiny_backbone)
    read = reading.read(reader, passages[:16])
    assert read.loss("memory") < read.loss("zeroed")
    losses = [text.losses for text in read.texts]
    assert any(own["memory"] != own["shuffled"] for own in losses)


def test_the_memory_of_the_text_itself_is_best() -> None:
    """A memory of zeros, of another text or in another order says less."""
    reader = Reader.open("smollm2-135m-llm2comp/1-pretext")
    read = reading.read(reader, TEXTS)
    controls = [read.loss(control) for control in ("other", "shuffled", "zeroed")]
    assert read.loss("full") < read.loss("memory") < min(controls) - 0.1
    assert min(controls) < read.loss("nothing") + 0.5


def test_bits_and_the_gap_are_those_of_their_formulas(
    runs: dict[str, tuple[Recipe, Path]], passages: list[str], tiny_backbone: Path
) -> None:
    reader = Reader.open(str(runs["continuation"][1]), "float32", tiny_backbone)
    read = reading.read(reader, passages[:2])
    one = read.texts[0]
    (ids,) = reader.tokens(passages[:1])
    assert one.compressed == int(0.75 * len(ids))
    assert one.compressed + len(one.predicted) == len(ids)
    assert (one.before + "".join(one.predicted)).split() == passages[0].split()
    difference = sum(one.losses["nothing"]) - sum(one.losses["memory"])
    assert one.bits == pytest.approx(difference / math.log(2))
    assert read.tokens_per_memory_token == mean(text.compressed for text in read.texts) / 4
    assert read.loss("memory") == mean(mean(text.losses["memory"]) for text in read.texts)
    assert one.divergence("full") == pytest.approx(0, abs=1e-6)


def reading_of(*texts: dict[str, list[float]]) -> reading.Reading:
    """Return a reading with losses by what is given; the controls are as good as nothing."""
    filled = [dict.fromkeys(reading.GIVEN, losses["nothing"]) | losses for losses in texts]
    of_texts = [
        reading.TextReading("a b c", 2, "a b", [" c"] * len(losses["memory"]), losses, {})
        for losses in filled
    ]
    return reading.Reading("m", "b", "continuation", 4, [], of_texts)


def test_the_gap_is_over_texts_or_over_the_tokens_of_one_text() -> None:
    one = {"nothing": [4.0, 5.0, 4.5], "memory": [3.0, 4.2, 3.9], "full": [2.0, 3.1, 2.8]}
    alone = reading_of(one).gap_closed
    assert alone is not None
    assert alone.value == pytest.approx((13.5 - 11.1) / (13.5 - 7.9))
    assert alone.low < alone.value < alone.high
    other = {"nothing": [6.0], "memory": [4.1], "full": [4.0]}
    both = reading_of(one, other)
    share = both.gap_closed
    assert share is not None
    assert share.value == pytest.approx((0.8 + 1.9) / (4.5 - 7.9 / 3 + 2))
    # Resamples are of two texts: those of one text twice are the ends.
    assert (share.low, share.high) == pytest.approx((0.8 / (4.5 - 7.9 / 3), 1.9 / 2))
    assert (
        both.lines()[-1] == "From nothing to the full text, it closes 70% (43% to 95%) of the gap"
    )
    assert both.summary()["gap_closed"] == share._asdict()


def test_a_gap_that_may_be_chance_is_no_percentage() -> None:
    """Memory that is 0.03 nats better, in a gap of 0.01 nats, would close 349 %."""
    tiny = {"nothing": [4.0, 5.0, 3.0], "memory": [3.97, 4.96, 2.96], "full": [4.2, 4.7, 3.07]}
    read = reading_of(tiny)
    assert read.gap_closed is None
    assert read.lines()[-1] == "From nothing to the full text, the gap is too small to tell"
    assert not [line for line in read.lines() if "%" in line]
    assert json.loads(read.as_json())["mean"]["gap_closed"] is None
    # One token alone cannot tell either.
    assert reading_of({given: rows[1:2] for given, rows in tiny.items()}).gap_closed is None


def test_a_text_alone_has_another_s_memory(
    runs: dict[str, tuple[Recipe, Path]], passages: list[str], tiny_backbone: Path
) -> None:
    reader = Reader.open(str(runs["continuation"][1]), "float32", tiny_backbone)
    one = reading.read(reader, passages[:1]).texts[0]
    assert one.losses["other"] != one.losses["memory"]
    both = reading.read(reader, passages[:2]).texts[0]
    assert one.losses["memory"] == pytest.approx(both.losses["memory"], abs=1e-5)


def test_json_has_everything(
    runs: dict[str, tuple[Recipe, Path]], passages: list[str], tiny_backbone: Path
) -> None:
    folder = runs["reconstruction"][1]
    read = llm2comp.read(
        folder, passages[:2], max_new_tokens=3, backbone=tiny_backbone, dtype="float32"
    )
    written = json.loads(read.as_json())
    assert written["mean"]["loss"]["memory"] == read.loss("memory")
    assert written["texts"][0]["said"].keys() == {"memory", "full"}
    assert written["texts"][0]["divergences"] == {}  # of a text that is said again
    assert len(read.cells()[0]) == 4
    assert any("the same tokens" in line for line in read.lines())


def test_nothing_is_said_without_new_tokens(
    runs: dict[str, tuple[Recipe, Path]], tiny_backbone: Path, tmp_path: Path
) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("The river rises in the mountains.\nShe planted beans.\n")
    folder = runs["continuation"][1]
    read = llm2comp.read(folder, file, max_new_tokens=0, backbone=tiny_backbone, dtype="float32")
    assert [text.said for text in read.texts] == [{}, {}]
    assert [text.text for text in read.texts] == file.read_text().splitlines()


def test_what_is_said_is_told_piece_by_piece(
    runs: dict[str, tuple[Recipe, Path]], tiny_backbone: Path
) -> None:
    reader = Reader.open(str(runs["continuation"][1]), "float32", tiny_backbone)
    told: list[str] = []
    read = reading.read(reader, ["The river rises."], " Yes", Sampling(4), told.append)
    said = "".join(told)
    assert said.startswith("After ")
    assert " in 4 memory tokens:\n Yes" in said
    for words in read.texts[0].said.values():
        assert words in said


@pytest.mark.parametrize("text", ["", "  ", []])
def test_no_text_is_a_mistake(text: str | list[str]) -> None:
    with pytest.raises(UserError, match="no text to read"):
        llm2comp.read("no such model", text)


def test_a_missing_file_is_named_before_a_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.txt"):
        llm2comp.read("no such model", tmp_path / "absent.txt")


def test_one_token_is_too_few(runs: dict[str, tuple[Recipe, Path]], tiny_backbone: Path) -> None:
    reader = Reader.open(str(runs["continuation"][1]), "float32", tiny_backbone)
    with pytest.raises(UserError, match="text 2 has fewer than two tokens"):
        reading.read(reader, ["The river.", "a"])
