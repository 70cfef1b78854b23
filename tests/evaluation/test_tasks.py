import pytest

from llm2comp.evaluation.tasks import TASKS, squad
from llm2comp.evaluation.tasks.squad import SQuADRetrieval, cut

Sets = dict[str, list[dict[str, str]]]


@pytest.mark.parametrize("name", TASKS)
def test_metadata_is_whole_and_named_like_the_registry(name: str) -> None:
    assert TASKS[name].metadata.name == name
    assert TASKS[name].metadata.is_filled()


def test_sts_tasks_take_their_rows_and_no_others(sets: Sets) -> None:
    for name, subset, wanted in (
        ("STSBenchmark", None, [row for row in sets["stsb"] if row["split"] == "test"]),
        ("STS17", "en-en", [row for row in sets["stsb"] if row["file"] == "track5.en-en"]),
    ):
        task = TASKS[name]()
        task.load_data()
        splits = task.dataset[subset] if subset else task.dataset
        assert list(splits) == ["test"]
        assert [(row["sentence1"], row["sentence2"], row["score"]) for row in splits["test"]] == [
            (row["sentence1"], row["sentence2"], float(row["score"])) for row in wanted
        ]
        assert (task.samples, task.texts) == (len(wanted), 2 * len(wanted))


def test_squad_keeps_every_question_with_its_own_paragraph(sets: Sets) -> None:
    task = SQuADRetrieval()
    task.load_data()
    data = task.dataset["default"]["test"]
    text = dict(zip(data["corpus"]["id"], data["corpus"]["text"], strict=True))
    assert (
        len(text) == len(set(text.values())) == len({row["context"] for row in sets["squad-dev"]})
    )
    for row, identity in zip(sets["squad-dev"], data["queries"]["id"], strict=True):
        assert [text[gold] for gold in data["relevant_docs"][identity]] == [row["context"]]
    assert (task.samples, task.texts) == (
        len(sets["squad-dev"]),
        len(sets["squad-dev"]) + len(text),
    )


def test_quick_squad_is_one_fixed_draw_with_the_gold_paragraphs_in_it(
    sets: Sets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(squad, "QUICK_QUESTIONS", 10)
    monkeypatch.setattr(squad, "QUICK_PARAGRAPHS", 20)
    tasks = [SQuADRetrieval(quick=True), SQuADRetrieval(quick=True)]
    for task in tasks:
        task.load_data()
    first, second = (task.dataset["default"]["test"] for task in tasks)
    assert first["queries"]["text"] == second["queries"]["text"]
    assert first["corpus"]["text"] == second["corpus"]["text"]
    assert (len(first["queries"]), len(first["corpus"])) == (10, 20)
    pairs = {(row["question"], row["context"][:40]) for row in sets["squad-dev"]}
    text = dict(zip(first["corpus"]["id"], first["corpus"]["text"], strict=True))
    for question, identity in zip(first["queries"]["text"], first["queries"]["id"], strict=True):
        (gold,) = first["relevant_docs"][identity]
        assert (question, text[gold][:40]) in pairs
    assert all(len(paragraph) <= squad.QUICK_CHARACTERS for paragraph in text.values())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one two three", "one two"),
        ("one two", "one two"),
        ("one twothree", "one"),
        ("onetwothree", "onetwot"),
        ("", ""),
    ],
)
def test_cut_ends_behind_a_whole_word(text: str, expected: str) -> None:
    assert cut(text, 7) == expected
