import dataclasses
from importlib import metadata
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer

from llm2comp.errors import UserError
from llm2comp.evaluation import baselines, store, suites
from llm2comp.evaluation.store import ResultStore, Score, TaskResult
from llm2comp.model.encoder import encoder_body
from llm2comp.version import __version__


@pytest.fixture
def model(tiny_backbone: Path) -> SentenceTransformer:
    return baselines.build("last-token", tiny_backbone)


def stored(model: str = "a", quick: bool = False, key: str = "k") -> TaskResult:
    score = Score("STS17", "cosine_spearman", 50.0, 1.0, 10, 10.0, 5, quick)
    return TaskResult(model, score, "sts", "", {}, key, store.versions(), None)


def test_a_fingerprint_is_the_same_after_use_and_from_disk(
    model: SentenceTransformer, tmp_path: Path, sentences: list[str]
) -> None:
    before = store.fingerprint(model)
    model.tokenizer.padding_side = "left"
    model.encode([*sentences, " ".join(sentences)], batch_size=3)
    model.tokenizer.padding_side = "right"
    assert store.fingerprint(model) == before
    model.save_pretrained(str(tmp_path))
    assert store.fingerprint(SentenceTransformer(str(tmp_path), device="cpu")) == before


def test_a_fingerprint_tells_models_apart(model: SentenceTransformer, tiny_backbone: Path) -> None:
    found = {
        store.fingerprint(baselines.build(name, tiny_backbone)) for name in baselines.BASELINES
    }
    assert len(found) == len(baselines.BASELINES)
    found.add(store.fingerprint(baselines.build("last-token", tiny_backbone, torch.bfloat16)))
    model.prompts = {"query": "Find: "}
    found.add(store.fingerprint(model))
    model.max_seq_length = 7
    found.add(store.fingerprint(model))
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3
    found.add(store.fingerprint(model))
    assert len(found) == len(baselines.BASELINES) + 4


def test_a_fingerprint_tells_attention_apart(model: SentenceTransformer) -> None:
    """The same weights give other embeddings with attention to both sides."""
    before = store.fingerprint(model)
    encoder_body(model).config.is_causal = True
    assert store.fingerprint(model) == before
    encoder_body(model).config.is_causal = False
    assert store.fingerprint(model) != before


@pytest.mark.parametrize("name", ["echo", "metaeol"])
def test_a_changed_prompt_changes_the_fingerprint(
    name: str, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = store.fingerprint(baselines.build(name, tiny_backbone))
    known = baselines.BASELINES[name]
    reworded = dataclasses.replace(known.prompts[0], before="Now: ")
    changed = dataclasses.replace(known, prompts=(reworded, *known.prompts[1:]))
    monkeypatch.setitem(baselines.BASELINES, name, changed)
    assert store.fingerprint(baselines.build(name, tiny_backbone)) != before


def test_a_key_changes_with_what_a_score_depends_on() -> None:
    def key(model: str = "f", task: str = "TREC", quick: bool = False, said: str = "") -> str:
        (chosen,) = suites.tasks([task], quick=quick)
        return store.key(model, chosen, said, quick=quick)

    keys = [key(), key("g"), key(task="R8"), key(quick=True), key(said="Find it")]
    assert len(set(keys)) == len(keys)
    assert key() == key()


def test_stored_results_are_read_back_unchanged(tmp_path: Path) -> None:
    results = ResultStore(tmp_path)
    kept = [stored("runs/a b"), stored("runs/a b", quick=True), stored("hub/c")]
    for one in kept:
        results.save(one)
    assert sorted(results.all(), key=repr) == sorted(kept, key=repr)
    assert results.get("hub/c", "STS17", False, "k") == kept[2]
    assert results.get("hub/c", "STS17", False, "another") is None
    assert results.get("hub/c", "STS17", True, "k") is None


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    ResultStore(tmp_path).save(stored())
    file = tmp_path / "a" / "STS17.json"
    file.write_text(file.read_text()[:50])
    with pytest.raises(UserError, match=r"STS17\.json is not a score that llm2comp stored"):
        ResultStore(tmp_path).all()


def test_a_score_can_be_stored_where_the_package_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From a checkout on PYTHONPATH there is no metadata of the package."""
    version = metadata.version

    def of_others(name: str) -> str:
        if name == "llm2comp":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", of_others)
    assert store.versions()["llm2comp"] == __version__
