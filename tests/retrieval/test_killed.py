"""A process that is killed while it adds loses nothing that it had acknowledged."""

import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llm2comp.retrieval.rows import Kinds
from llm2comp.retrieval.store import Store
from retrieval.adds_for_ever import DIM, SIZE, chunk


@pytest.mark.parametrize("k", [1, 3])
def test_nothing_that_was_acknowledged_is_lost(new_store: Callable[..., Store], k: int) -> None:
    folder = new_store(DIM, k=k).folder
    chance = random.Random(0)
    first = 0
    for _ in range(3):
        command = [sys.executable, str(Path(__file__).with_name("adds_for_ever.py"))]
        with subprocess.Popen(
            [*command, str(folder), str(first)], stdout=subprocess.PIPE, text=True
        ) as adding:
            assert adding.stdout is not None
            acknowledged = [int(adding.stdout.readline())]
            time.sleep(chance.uniform(0, 0.5))
            adding.kill()
            acknowledged += map(int, adding.stdout.read().split())
        store = Store(folder)
        chunks, half = divmod(len(store), SIZE)
        assert half == 0, "there is half of a chunk"
        assert chunks - acknowledged[-1] - 1 in (0, 1), "what was not acknowledged is one chunk"
        for number in (first, acknowledged[-1], chunks - 1):
            rows, vectors = chunk(number, k)
            assert store.rows([row.id for row in rows]) == {row.id: row for row in rows}
            (found, score), *_ = store.nearest(vectors[7], 1)
            assert found.id == rows[7].id
            assert score == pytest.approx(1, abs=1e-5 if k == 1 else 1e-2)
            words = store.matching(rows[7].text, 5, f"chunk = {number}")
            assert rows[7].id in {row.id for row, _ in words}
        first = chunks


def test_a_search_goes_on_while_another_process_adds(new_store: Callable[..., Store]) -> None:
    store = new_store(DIM)
    store.put(*chunk(0), Kinds({"chunk": "int"}))
    (row, *_), (vector, *_) = chunk(0)
    command = [sys.executable, str(Path(__file__).with_name("adds_for_ever.py"))]
    with subprocess.Popen(
        [*command, str(store.folder), "1"], stdout=subprocess.PIPE, text=True
    ) as adding:
        assert adding.stdout is not None
        adding.stdout.readline()
        sizes = set()
        begin = time.monotonic()
        while time.monotonic() < begin + (2 if len(sizes) > 1 else 60):
            assert store.nearest(vector, 1)[0][0] == row
            assert store.matching(row.text, 1, "chunk = 0")[0][0] == row
            sizes.add(len(store))
        adding.kill()
    assert len(sizes) > 1, "what the other process added was not seen"
