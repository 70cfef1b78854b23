import pytest

from llm2comp.data import catalog
from llm2comp.evaluation.tasks import clusters, privacy_policy, r8, trec
from llm2comp.evaluation.tasks.offline import cut
from llm2comp.evaluation.tasks.registry import DEVELOPMENT, TASKS
from llm2comp.evaluation.tasks.retrieval import RetrievalTask
from llm2comp.evaluation.tasks.squad import SQuADRetrieval

Sets = dict[str, list[dict[str, str]]]


OWN = TASKS | DEVELOPMENT
RETRIEVAL = [name for name, task in OWN.items() if issubclass(task, RetrievalTask)]


@pytest.mark.parametrize("name", OWN)
def test_metadata_is_complete_and_has_the_name_of_the_registry(name: str) -> None:
    assert OWN[name].metadata.name == name
    assert OWN[name].metadata.is_filled()


def test_no_development_task_shares_its_rows_with_a_test_set_or_may_be_trained_on() -> None:
    path = {name: task.metadata.dataset["path"] for name, task in OWN.items()}
    tested = {path[name] for name in TASKS}
    for name in DEVELOPMENT.keys() - {"STSBenchmarkDev"}:  # another split of the same source
        assert path[name] not in tested
        assert not catalog.entry(path[name]).trainable


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


@pytest.mark.parametrize("name", RETRIEVAL)
def test_retrieval_keeps_every_question_with_its_own_context(name: str, sets: Sets) -> None:
    task = OWN[name]()
    task.load_data()
    rows = sets[task.source]
    data = task.dataset["default"]["test"]
    text = dict(zip(data["corpus"]["id"], data["corpus"]["text"], strict=True))
    assert len(text) == len(set(text.values())) == len({row["context"] for row in rows})
    for row, identity in zip(rows, data["queries"]["id"], strict=True):
        assert [text[gold] for gold in data["relevant_docs"][identity]] == [row["context"]]
    assert (task.samples, task.texts) == (len(rows), len(rows) + len(text))


@pytest.mark.parametrize("name", RETRIEVAL)
def test_quick_retrieval_is_one_fixed_draw_with_the_gold_contexts_in_it(
    name: str, sets: Sets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OWN[name], "quick_questions", 10)
    monkeypatch.setattr(OWN[name], "quick_contexts", 15)
    tasks = [OWN[name](quick=True), OWN[name](quick=True)]
    for task in tasks:
        task.load_data()
    first, second = (task.dataset["default"]["test"] for task in tasks)
    assert first["queries"]["text"] == second["queries"]["text"]
    assert first["corpus"]["text"] == second["corpus"]["text"]
    assert (len(first["queries"]), len(first["corpus"])) == (10, 15)
    pairs = {(row["question"], row["context"][:40]) for row in sets[OWN[name].source]}
    text = dict(zip(first["corpus"]["id"], first["corpus"]["text"], strict=True))
    for question, identity in zip(first["queries"]["text"], first["queries"]["id"], strict=True):
        (gold,) = first["relevant_docs"][identity]
        assert (question, text[gold][:40]) in pairs


def test_only_quick_squad_cuts_its_contexts(sets: Sets) -> None:
    longest = max(len(row["context"]) for row in sets["squad-dev"])
    for name in RETRIEVAL:
        task = OWN[name](quick=True)
        task.load_data()
        found = max(map(len, task.dataset["default"]["test"]["corpus"]["text"]))
        assert (found <= SQuADRetrieval.quick_characters < longest) == (name == "SQuADRetrieval")


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
def test_cut_ends_after_a_whole_word(text: str, expected: str) -> None:
    assert cut(text, 7) == expected


def test_clusters_keep_every_label_and_the_beginning_of_every_text(sets: Sets) -> None:
    for name, source in (
        ("TwentyNewsgroups", "20newsgroups"),
        ("PubMedJournals", "pubmed-journals"),
        ("PubMedJournalsDev", "pubmed-journals-dev"),
    ):
        task = OWN[name]()
        task.load_data()
        test = task.dataset["test"]
        assert test["labels"] == [row["label"] for row in sets[source]]
        assert all(
            row["text"].startswith(text)
            for row, text in zip(sets[source], test["sentences"], strict=True)
        )
        longest = max(map(len, test["sentences"]))
        assert (longest <= 128) == (name == "TwentyNewsgroups")
        assert (task.samples, task.texts) == (len(test), len(test))


def test_a_clustering_task_limits_the_number_of_documents(
    sets: Sets, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sets
    monkeypatch.setattr(clusters, "DOCUMENTS", 45)
    monkeypatch.setattr(clusters, "QUICK_DOCUMENTS", 20)
    for quick, documents in ((False, 45), (True, 20)):
        task = TASKS["TwentyNewsgroups"](quick=quick)
        task.load_data()
        assert task.texts == task.max_document_to_embed == documents


def test_trec_draws_one_stratified_test_set(sets: Sets) -> None:
    tasks = [TASKS["TREC"](), TASKS["TREC"](quick=True)]
    for task in tasks:
        task.load_data()
    train, test = (tasks[0].dataset[split] for split in ("train", "test"))
    assert test["text"] == tasks[1].dataset["test"]["text"]
    assert sorted([*train["text"], *test["text"]]) == sorted(row["text"] for row in sets["trec"])
    assert {label: test["label"].count(label) for label in set(test["label"])} == dict.fromkeys(
        range(4), trec.TEST // 4
    )
    names = test.features["label"].names
    of = {row["text"]: row["label"] for row in sets["trec"]}
    assert [of[row["text"]] for row in test] == [names[label] for label in test["label"]]


def test_r8_keeps_the_official_split(sets: Sets) -> None:
    whole, quick = TASKS["R8"](), TASKS["R8"](quick=True)
    for task in (whole, quick):
        task.load_data()
    for split in ("train", "test"):
        official = [row["text"] for row in sets["r8"] if row["split"] == split]
        assert whole.dataset[split]["text"] == official
    drawn = quick.dataset["test"]["text"]
    assert len(drawn) == quick.samples == r8.QUICK_TEST
    assert max(map(len, drawn)) <= r8.QUICK_CHARACTERS
    beginnings = {cut(text, r8.QUICK_CHARACTERS) for text in whole.dataset["test"]["text"]}
    assert beginnings.issuperset(drawn)


def test_privacy_policy_draws_labelled_pairs(sets: Sets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy_policy, "QUICK_PAIRS", 10)
    of = {(row["question"], row["context"]): row["label"] for row in sets["privacy-policy"]}
    for quick, count in ((False, 40), (True, 10)):
        task = TASKS["PrivacyPolicy"](quick=quick)
        task.load_data()
        test = task.dataset["test"]
        assert len(test) == task.samples == count
        assert [of[row["sentence1"], row["sentence2"]] for row in test] == [
            str(label == 1) for label in test["labels"]
        ]
