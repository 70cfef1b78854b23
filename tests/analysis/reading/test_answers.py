"""Answers from memory: each case against a direct computation, and what is written."""

import json
from pathlib import Path
from statistics import mean

import pytest
import torch
from torch.nn.functional import cross_entropy
from typer.testing import CliRunner

import llm2comp
from llm2comp.analysis.reading import answers as module
from llm2comp.analysis.reading.answers import GIVEN, Answers, cells, draw_questions
from llm2comp.cli.app import app
from llm2comp.errors import UserError
from llm2comp.inference.reading.answering import PROMPT, TOKENS
from llm2comp.inference.reading.reader import Reader
from llm2comp.recipe import load_recipe
from llm2comp.training import pipeline

Sets = dict[str, list[dict[str, str]]]


@pytest.fixture(scope="module")
def folder(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = load_recipe(tiny_recipe, ["pretext.steps=4", "pretext.eval_passages=4"])
    recipe = recipe.model_copy(update={"stages": recipe.stages[:1]})
    out = tmp_path_factory.mktemp("runs") / "tiny"
    pipeline.train(recipe, out)
    return out / "1-pretext"


@pytest.fixture
def measured(folder: Path, tiny_backbone: Path, sets: Sets) -> Answers:
    (each,) = llm2comp.answer(folder, questions=6, seed=1, backbone=tiny_backbone, dtype="float32")
    return each


def test_questions_are_on_different_passages(sets: Sets) -> None:
    drawn = draw_questions(40, 3)
    assert drawn == draw_questions(40, 3)
    assert drawn != draw_questions(40, 4)
    assert len({one.passage for one in drawn}) == 40
    rows = {row["id"]: row for row in sets["squad-dev"]}
    for one in drawn:
        assert rows[one.id]["question"] == one.question
        assert one.answers == rows[one.id]["answers"].split("\n")
    with pytest.raises(UserError, match="has 48 passages, and 49 questions are asked"):
        draw_questions(49, 0)


def test_each_case_is_a_direct_computation(
    measured: Answers, folder: Path, tiny_backbone: Path, sets: Sets
) -> None:
    assert list(measured.given) == list(GIVEN)
    reader = Reader.open(str(folder), "float32", tiny_backbone)
    memory = llm2comp.memory(
        folder, [one.passage for one in measured.questions], backbone=tiny_backbone, dtype="float32"
    )
    embeddings = torch.tensor(reader.encoder.encode([one.passage for one in measured.questions]))
    queries = torch.tensor(reader.encoder.encode([one.question for one in measured.questions]))
    nearest = (queries @ embeddings.T).argmax(1).tolist()
    assert measured.found == mean(float(row == found) for row, found in enumerate(nearest))
    assert measured.found < 1  # so some questions are asked on a wrong passage
    passages = [reader.tokens([one.passage])[0] for one in measured.questions]
    (bos,) = {int(reader.encoder.tokenizer("")["input_ids"][0])}
    for row, one in enumerate(measured.questions):
        context = {
            "full": reader.embed(passages[row]),
            "memory": memory.vectors[row],
            "last": reader.embed(passages[row][-4:]),
            "nothing": reader.embed([]),
            "other": memory.vectors[row - 1],
            "zeroed": torch.zeros(4, 32),
            "found memory": memory.vectors[nearest[row]],
            "found text": reader.embed(passages[nearest[row]]),
        }
        (prompt,) = reader.tokens([PROMPT.format(question=one.question)])
        (target,) = reader.tokens([f" {one.answers[0]}"])
        for case, vectors in context.items():
            start = [reader.embed([bos]), vectors, reader.embed(prompt)]
            with torch.no_grad():
                inputs = torch.cat([*start, reader.embed(target)])[None]
                logits = reader.model(inputs_embeds=inputs).logits[0, -len(target) - 1 : -1]
                said: list[int] = []
                while len(said) < TOKENS:
                    seen = torch.cat([*start, reader.embed(said)])[None]
                    said.append(int(reader.model(inputs_embeds=seen).logits[0, -1].argmax()))
                    if said[-1] == reader.tokenizer.eos_token_id:
                        break
                    if "\n" in reader.decode(said[-1:]):
                        break
            got = measured.given[case]
            wanted = cross_entropy(logits, torch.tensor(target)).item()
            assert got.losses[row] == pytest.approx(wanted, abs=1e-4), case
            assert got.said[row] == reader.decode(said).split("\n")[0].strip(), case
            assert got.tokens[row] == len(vectors), case
    assert measured.given["shuffled"].losses != measured.given["memory"].losses


def test_intervals_hold_the_mean_and_differences_are_paired(measured: Answers) -> None:
    low, high = measured.interval("memory", "losses")
    assert low <= measured.mean("memory", "losses") <= high
    low, high = measured.interval("full", "losses", "nothing")
    gain = measured.mean("full", "losses") - measured.mean("nothing", "losses")
    assert low <= gain <= high
    assert measured.interval("memory", "f1", "memory") == (0, 0)


def test_what_does_not_depend_on_the_encoder_is_asked_once(
    folder: Path, tiny_backbone: Path, sets: Sets, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    before = module.ask
    monkeypatch.setattr(module, "ask", lambda *args: asked.append(1) or before(*args))
    first, second = llm2comp.answer(
        [folder, folder], questions=4, backbone=tiny_backbone, dtype="float32"
    )
    assert len(asked) == (9 + 6 if first.found < 1 else 7 + 4)
    assert first.given["full"] is second.given["full"]
    assert first.given["memory"].losses == second.given["memory"].losses


def test_the_table_and_the_file(
    folder: Path, tiny_backbone: Path, sets: Sets, tmp_path: Path
) -> None:
    options = ["--backbone", str(tiny_backbone), "--dtype", "float32", "--questions", "3"]
    result = CliRunner().invoke(app, ["answer", str(folder), *options, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    for label in (*GIVEN.values(), "F1 over nothing"):
        assert label in result.output
    (written,) = json.loads((tmp_path / "answers.json").read_text())
    assert written["prompt"] == PROMPT
    assert written["seed"] == 0
    assert written["data"] == "squad-dev"
    assert written["versions"]["torch"] == torch.__version__
    assert len(written["questions"]) == 3
    memory = written["given"]["memory"]
    assert written["summary"]["memory"]["f1"]["mean"] == pytest.approx(mean(memory["f1"]))
    again = CliRunner().invoke(app, ["answer", str(folder), *options, "--json"])
    (shown,) = json.loads(again.stdout)
    assert shown["given"]["memory"]["said"] == memory["said"]


def test_a_row_has_a_cell_for_each_column(measured: Answers) -> None:
    heading, *rows = cells([measured])
    assert len(rows) == len(GIVEN)
    assert {len(row) for row in rows} == {len(heading)}


def test_mistakes_are_one_line(folder: Path) -> None:
    with pytest.raises(UserError, match="questions is 1; it must be at least 2"):
        llm2comp.answer(folder, questions=1)
    with pytest.raises(UserError, match="name an encoder"):
        llm2comp.answer([])
