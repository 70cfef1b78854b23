"""Workers: the embeddings of one process, in order, from the same batches, without tracebacks."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.progress import Progress
from sentence_transformers import SentenceTransformer

from llm2comp.errors import UserError
from llm2comp.evaluation import baselines
from llm2comp.inference import encode_file as encoding
from llm2comp.inference.embed import embed
from llm2comp.inference.encode_file import encode_file
from llm2comp.inference.worker_pool import Workers, start
from llm2comp.model.attention import NAME
from llm2comp.utils.progress import track_texts


@pytest.fixture(scope="module")
def model(tiny_backbone: Path) -> SentenceTransformer:
    built = baselines.build("echo", tiny_backbone)
    built.prompts = {"query": "Question: ", "document": ""}
    return built


@pytest.fixture(scope="module")
def pool(model: SentenceTransformer) -> Iterator[Workers]:
    torch.set_num_threads(4)
    try:
        with start(model, 2) as started:
            torch.set_num_threads(1)
            yield started
    finally:
        torch.set_num_threads(1)


@pytest.fixture(scope="module")
def texts(sentences: list[str]) -> list[str]:
    return [" ".join(sentences[: i % 5]) + " " * (i % 3) for i in range(60)]


def _about(model: SentenceTransformer, _: Any) -> tuple[int, int, str, str]:
    attention = model[0].model.config._attn_implementation  # type: ignore[union-attr]
    return os.getpid(), torch.get_num_threads(), type(model).__qualname__, str(attention)


def _broken(model: SentenceTransformer, _: Any) -> None:
    os._exit(1)


@pytest.mark.parametrize("prompt", ["query", None])
def test_embeddings_are_those_of_one_process(
    model: SentenceTransformer, pool: Workers, texts: list[str], prompt: str | None
) -> None:
    found = embed(model, texts, 2, prompt, pool)
    np.testing.assert_allclose(found, embed(model, texts, 2, prompt), atol=1e-6)
    np.testing.assert_allclose(embed(model, texts[3:4], 2, prompt, pool), found[3:4], atol=1e-5)


def test_a_worker_has_the_model_s_class_and_attention_and_its_share_of_threads(
    pool: Workers,
) -> None:
    found = list(pool.map(_about, range(8)))
    assert {about[1:] for about in found} == {(2, "TokenBatched", NAME)}
    assert os.getpid() not in {process for process, *_ in found}


def test_the_bar_advances_by_every_text(
    model: SentenceTransformer, pool: Workers, texts: list[str]
) -> None:
    progress = Progress()
    bar = progress.add_task("", total=len(texts))
    steps = []
    with track_texts(model, progress, bar, pool):
        advance = pool.on_batch
        pool.on_batch = lambda done: (steps.append(done), advance(done))
        embed(model, texts, 2, None, pool)
    assert progress.tasks[bar].completed == len(texts) == sum(steps)
    assert len(steps) > 5


def test_a_file_is_encoded_as_by_one_process(
    model: SentenceTransformer, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "CHUNK_BATCHES", 4)  # several chunks; the last has one text
    file = tmp_path / "texts.txt"
    file.write_text("".join(f"{text}\n" for text in texts[:49]))
    for workers in (1, 2):
        encode_file(model, file, tmp_path / f"{workers}.npy", batch_size=3, workers=workers)
    one, two = (np.load(tmp_path / f"{workers}.npy") for workers in (1, 2))
    np.testing.assert_allclose(one, two, atol=1e-6)


def test_a_worker_that_ends_is_one_clear_line(model: SentenceTransformer) -> None:
    with pytest.raises(UserError, match="try fewer workers"), start(model, 1) as pool:
        list(pool.map(_broken, range(4)))


@pytest.mark.parametrize("kind", [ValueError, OSError, BrokenProcessPool])
def test_a_start_that_fails_is_one_clear_line(
    model: SentenceTransformer,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    kind: type[Exception],
) -> None:
    # What `submit` raises if the workers before are killed while it starts one.
    def submit(*_: object) -> None:
        raise kind("bad value(s) in fds_to_keep")

    monkeypatch.setattr(ProcessPoolExecutor, "submit", submit)
    with pytest.raises(UserError, match="try fewer workers") as raised, start(model, 2):
        pass
    assert isinstance(raised.value.__cause__, kind)
    assert capfd.readouterr().err == ""


def test_a_model_that_cannot_be_shared_is_one_clear_line(
    model: SentenceTransformer, tmp_path: Path
) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("a text\n")
    stock = SentenceTransformer(modules=list(model.children()))
    with pytest.raises(UserError, match="a compiled one uses all threads without workers"):
        encode_file(stock, file, tmp_path / "v.npy", workers=2)
    with pytest.raises(UserError, match="workers is 0"):
        encode_file(model, file, tmp_path / "v.npy", workers=0)
    assert not (tmp_path / "v.npy").exists()


SCRIPT = """
import os, sys, time
from pathlib import Path
from llm2comp.evaluation import baselines
from llm2comp.inference.worker_pool import start

def process_id(model, _):
    return os.getpid()

if __name__ == "__main__":
    with start(baselines.build("mean", Path(sys.argv[1])), 1) as workers:
        print(*workers.map(process_id, [0]), flush=True)
        time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_worker_ends_when_its_parent_is_killed(tiny_backbone: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(tiny_backbone)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    for _ in range(600):
        status = Path(f"/proc/{worker}/status")
        if not status.exists() or "zombie" in status.read_text():
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker still runs")
