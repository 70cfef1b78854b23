"""Answers of several questions at once: those of one at a time, and of a slow loop."""

from pathlib import Path

import pytest
import torch

from llm2comp.inference.reading.answering import answers, asked, in_words
from llm2comp.inference.reading.reader import Reader
from llm2comp.recipe import load_recipe
from llm2comp.training import pipeline


@pytest.fixture(scope="module")
def reader(
    tiny_recipe: Path, tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory
) -> Reader:
    recipe = load_recipe(tiny_recipe, ["pretext.steps=0"])
    recipe = recipe.model_copy(update={"stages": recipe.stages[:1]})
    out = tmp_path_factory.mktemp("runs") / "tiny"
    pipeline.train(recipe, out)
    return Reader.open(str(out / "1-pretext"), "float32", tiny_backbone)


@pytest.fixture(scope="module")
def prefixes(reader: Reader, sentences: list[str]) -> list[torch.Tensor]:
    """Passages and questions of many lengths; one has no passage."""
    texts = [sentences[0], "", *(" ".join(sentences[:rows]) for rows in range(1, 8))]
    prompts = asked(reader, [f"What is {number}? " for number in range(len(texts))])
    passages = [reader.embed(ids) for ids in reader.tokens(texts)]
    return [
        reader.prefix(passage, reader.embed(prompt))
        for passage, prompt in zip(passages, prompts, strict=True)
    ]


def test_a_batch_gives_the_answers_of_one_at_a_time(
    reader: Reader, prefixes: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = answers(reader, prefixes, 9)
    assert together == [answers(reader, [prefix], 9)[0] for prefix in prefixes]
    monkeypatch.setattr("llm2comp.inference.reading.answering.AT_ONCE", 2)
    assert together == answers(reader, prefixes, 9)


def test_answers_are_those_of_a_slow_loop_up_to_the_end_of_the_line(
    reader: Reader, prefixes: list[torch.Tensor]
) -> None:
    slow = []
    for prefix in prefixes:
        said: list[int] = []
        while len(said) < 9:
            inputs = torch.cat([prefix, reader.embed(said)])[None]
            said.append(int(reader.model(inputs_embeds=inputs).logits[0, -1].argmax()))
            if said[-1] == reader.tokenizer.eos_token_id or "\n" in reader.decode(said[-1:]):
                break
        slow.append(said)
    assert answers(reader, prefixes, 9) == slow
    (end,) = reader.tokens([" Rome\nQuestion"])
    assert in_words(reader, end) == "Rome"


def test_questions_are_asked_after_an_example(reader: Reader) -> None:
    (ids,) = asked(reader, [" Who? "])
    assert reader.decode(ids).endswith("blue\nQuestion: Who?\nAnswer:")
