"""Prompts that hold: what stood before queries in training is what an encoder stores."""

import pytest

from llm2comp.model.lineage import Lineage, StageRecord
from llm2comp.model.prompt_format import in_words, trained_prompts
from llm2comp.recipe import Supervised
from llm2comp.recipe_parts import DataSource

EMPTY = {"query": "", "document": ""}


def source(name: str, instruction: str = "") -> DataSource:
    return DataSource(source=name, query_instruction=instruction)


@pytest.mark.parametrize(
    ("prompts", "given", "sources", "stored"),
    [
        (EMPTY, {}, [source("a.jsonl")], EMPTY),
        (EMPTY, EMPTY, [source("a.jsonl", "Find"), source("b")], EMPTY | {"query": "Find:"}),
        ({"query": "q: "}, {}, [source("a", "Find")], {"query": "Find:"}),
        (
            {"query": "Ask:"},
            {"query": "Ask:"},
            [source("/x/a.jsonl", "Find")],
            {"query": "Ask:", "a": "Find:"},
        ),
        (
            EMPTY | {"query": "Ask:"},
            {"query": "Ask:"},
            [source("a", "Ask"), source("b", "Find")],
            EMPTY | {"query": "Ask:", "b": "Find:"},
        ),
        (
            {"query": "Ask:"},
            {"query": "Ask:"},
            [source("nq/train.jsonl", "Find"), source("x/hotpot/train.jsonl", "Ask")],
            {"query": "Ask:", "nq/train": "Find:"},
        ),
        (
            {"query": "Ask:"},
            {"query": "Ask:"},
            [source("my/query.jsonl", "Find"), source("a", "Sort"), source("a", "Rank")],
            {"query": "Ask:", "my/query": "Find:", "a": "Sort:", "a#2": "Rank:"},
        ),
        (
            {"query": "Ask:", "train": "Old:"},
            {"query": "Ask:"},
            [source("query.jsonl", "Find"), source("x/train.jsonl", "Sort")],
            {"query": "Ask:", "train": "Old:", "query#2": "Find:", "x/train": "Sort:"},
        ),
    ],
    ids=[
        "none",
        "one",
        "one over the base's",
        "another is chosen",
        "several",
        "files of one name",
        "names that are taken",
        "names of the encoder's own prompts",
    ],
)
def test_each_instruction_is_a_prompt(
    prompts: dict[str, str],
    given: dict[str, str],
    sources: list[DataSource],
    stored: dict[str, str],
) -> None:
    assert trained_prompts(prompts, given, sources) == stored


@pytest.mark.parametrize(
    ("instructions", "trained", "stored", "told"),
    [
        ([""], {}, {}, None),
        (["Find"], {}, {"query": "Find:"}, None),
        (["Find", "Ask"], {}, {"query": "Ask:"}, None),
        (["Find"], {}, {"query": ""}, "in training 'Find:' stood before each query"),
        ([""], {}, {"query": "Find:"}, "in training nothing stood before each query"),
        ([""], {"query": "q: "}, {"query": "q: "}, None),
        (
            [""],
            {"query": "q: ", "document": "d: "},
            {"query": "q: "},
            "in training 'd: ' stood before each document, and encode_document puts ''",
        ),
    ],
)
def test_a_mismatch_is_told(
    instructions: list[str], trained: dict[str, str], stored: dict[str, str], told: str | None
) -> None:
    stage = Supervised(
        data=[source(f"{n}.jsonl", text) for n, text in enumerate(instructions)],
        steps=1,
        batch_size=2,
        learning_rate=1,
    )
    record = StageRecord.of(stage, causal=True, lora={}, prompts=trained)
    lineage = Lineage.model_validate(
        {
            "name": "x",
            "backbone": {"name": "y"},
            "memory": {},
            "prompt_format": "memory",
            "prompts": {},
            "max_length": 8,
            "seed": 0,
            "stages": [record.model_dump()],
        }
    )
    found = lineage.prompt_mismatch(stored)
    assert (found is None) if told is None else (found is not None and told in found)


@pytest.mark.parametrize(
    ("given", "sources", "rows", "stored"),
    [
        ({}, [source("a")], [["Ask: "]], {"query": "Ask: "}),
        ({}, [source("a"), source("b")], [["Ask: "], ["Ask: "]], {"query": "Ask: "}),
        ({}, [source("a", "Find"), source("b")], [[], ["Find:"]], {"query": "Find:"}),
        (
            {},
            [source("x/a.jsonl"), source("b", "Find"), source("c")],
            [["Ask: "], [], ["1 ", "2 "]],
            {"query": "old: ", "a": "Ask: ", "b": "Find:"},
        ),
        ({"query": "old: "}, [source("a")], [["Ask: "]], {"query": "old: ", "a": "Ask: "}),
        ({}, [source("a")], [["1 ", "2 "]], {"query": "old: "}),
    ],
    ids=[
        "one",
        "one of two",
        "one with an instruction",
        "several",
        "another is chosen",
        "in a row",
    ],
)
def test_each_prompt_of_rows_is_a_prompt(
    given: dict[str, str],
    sources: list[DataSource],
    rows: list[list[str]],
    stored: dict[str, str],
) -> None:
    assert trained_prompts({"query": "old: "}, given, sources, rows) == stored


def test_a_message_names_a_few_of_many_prompts() -> None:
    stage = Supervised(data=[source("a")], steps=1, batch_size=2, learning_rate=1)
    many = [[f"{n}: " for n in range(9)]]
    record = StageRecord.of(stage, causal=True, lora={}, row_prompts=many)
    assert record.query_prompts == set(many[0])
    assert in_words(record.query_prompts) == "'0: ' or '1: ' or '2: ' or one of 6 others"
