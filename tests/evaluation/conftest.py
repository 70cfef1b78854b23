"""Small stand-ins for the packaged evaluation sets."""

import random

import pytest

from llm2comp.data import catalog

Rows = list[dict[str, str]]


@pytest.fixture
def sets(monkeypatch: pytest.MonkeyPatch, sentences: list[str]) -> dict[str, Rows]:
    """Serve small sets in place of the catalogue's, and return them."""
    draw = random.Random(0)
    stsb = [
        {
            "split": split,
            "file": origin,
            "score": f"{draw.uniform(0, 5):.3f}",
            "sentence1": draw.choice(sentences),
            "sentence2": " ".join(draw.sample(sentences, 2)),
        }
        for split in ("train", "dev", "test")
        for origin in ("MSRvid", "track5.en-en")
        for _ in range(6)
    ]
    # Unlike each other: near-ties would be ranked by rounding.
    contexts = [" ".join(draw.choices(sentences, k=7)) for _ in range(48)]
    squad = [
        {
            "id": f"{index}-{asked}",
            "question": f"{' '.join(context.split()[5 * asked : 5 * asked + 5])}?",
            "context": context,
        }
        for index, context in enumerate(contexts)
        for asked in range(2)
    ]
    served = {"stsb": stsb, "squad-dev": squad}
    monkeypatch.setattr(catalog, "rows", lambda name: iter(served[name]))
    return served
