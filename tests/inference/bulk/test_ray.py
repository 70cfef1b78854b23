"""Ray writes the files that this machine writes alone, whatever is killed meanwhile.

Ray is not among what the tests install, because it takes 240 MB. `make test-ray` installs it, and
runs these tests.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

import numpy as np
import psutil
import pytest
from rich.progress import Progress
from shard_texts import read_vectors, write_texts

import llm2comp
from llm2comp.errors import UserError
from llm2comp.inference.bulk.encoding import Settings
from llm2comp.inference.bulk.ray_engine import RETRIES, RayEngine
from llm2comp.inference.bulk.shards import find_shards

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.exhaustive
OPTIONS = {"dtype": "float32", "keep": ["id", "text"]}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster of this machine with room for two actors."""
    # The actors find the package of this checkout by the environment that the cluster inherits.
    ray.init(
        num_cpus=2,
        object_store_memory=80 << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


def actors() -> list[psutil.Process]:
    """Return the processes that hold the model."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if (process.info["cmdline"] or [""])[0].startswith("ray::MapWorker")
    ]


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))


@contextmanager
def meanwhile(step: Callable[[], bool]) -> Iterator[None]:
    """Call `step` again and again in a thread, until it returns True or the block ends."""
    ended = Event()

    def watch() -> None:
        while not ended.is_set() and not step():
            time.sleep(0.005)

    thread = Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.usefixtures("cluster")
def test_a_worker_is_killed_and_every_row_is_there_once(
    encoder: Path, tmp_path: Path, sentences: list[str]
) -> None:
    texts, out = tmp_path / "texts", tmp_path / "out"
    write_texts(texts, 20, 1000, sentences, longest=20)
    killed: list[int] = []

    def kill_half_way() -> bool:
        if len(parts(out)) >= 10:
            victim = actors()[0]
            victim.send_signal(signal.SIGKILL)
            killed.append(victim.pid)
        return bool(killed)

    with meanwhile(kill_half_way):
        done = llm2comp.encode_files(encoder, texts, out, engine="ray", workers=2, **OPTIONS)
    assert len(killed) == 1
    assert (done.files, done.rows, done.failed) == (20, 20_000, {})
    assert not list(out.glob(".*.part"))
    alone = tmp_path / "alone"
    llm2comp.encode_files(encoder, texts, alone, **OPTIONS)
    found, wanted = read_vectors(out), read_vectors(alone)
    assert list(found) == list(wanted) == [str(number) for number in range(20_000)]
    assert [text for text, _ in found.values()] == [text for text, _ in wanted.values()]
    vectors = [np.array([vector for _, vector in one.values()]) for one in (found, wanted)]
    np.testing.assert_allclose(*vectors, atol=1e-5)


@pytest.mark.usefixtures("cluster")
def test_files_that_fail_are_named_and_the_others_go_on(
    encoder: Path, tmp_path: Path, sentences: list[str]
) -> None:
    """One has a broken row, and another ends every process that encodes it."""
    texts, out = tmp_path / "texts", tmp_path / "out"
    write_texts(texts, 6, 200, sentences)
    write_texts(tmp_path / "long", 1, 3000, sentences, longest=60)
    long = (tmp_path / "long" / "part-00.jsonl").read_text()
    (texts / "part-02.jsonl").write_text(long)
    with (texts / "part-04.jsonl").open("a") as file:
        file.write("{broken\n")
    killed: set[int] = set()

    def kill_who_encodes_it() -> bool:
        for process in actors():
            try:
                if any("/.part-02." in one.path for one in process.open_files()):
                    process.send_signal(signal.SIGKILL)
                    killed.add(process.pid)
            except psutil.Error:
                continue
        return False

    with meanwhile(kill_who_encodes_it):
        done = llm2comp.encode_files(
            encoder, texts, out, engine="ray", workers=2, precision="int8", **OPTIONS
        )
    assert len(killed) == RETRIES + 1
    assert list(done.failed) == [f"{texts}/part-04.jsonl", f"{texts}/part-02.jsonl"]
    broken, ended = done.failed.values()
    assert broken.startswith(f"{texts}/part-04.jsonl:201: broken JSON")
    assert ended.startswith(f"{texts}/part-02.jsonl: the process that encoded it ended 3 times")
    assert (done.files, done.rows) == (4, 800)

    (texts / "part-02.jsonl").unlink()
    alone = llm2comp.encode_files(encoder, texts, tmp_path / "alone", precision="int8", **OPTIONS)
    assert list(alone.failed.values()) == [broken]
    assert read_vectors(out) == read_vectors(tmp_path / "alone")


@pytest.mark.usefixtures("cluster")
def test_what_is_wrong_with_the_model_is_one_line(
    encoder: Path, tmp_path: Path, sentences: list[str]
) -> None:
    texts, out = tmp_path / "texts", tmp_path / "out"
    write_texts(texts, 2, 2, sentences)
    said = []
    for name in ("local", "ray"):
        with pytest.raises(UserError) as raised:
            llm2comp.encode_files("no such model", texts, out, engine=name)
        said.append(str(raised.value))
    assert said[0] == said[1]
    assert not out.exists()

    engine = RayEngine(Settings(str(encoder)), workers=2)
    encoding = replace(engine.encoding(None, str(out)), fingerprint="another")
    progress = Progress()
    task = progress.add_task("")
    results = list(engine.run(find_shards(str(texts)), str(out), encoding, progress, task))
    assert {result.error for result in results} == {
        f"model {str(encoder)!r} is another one on this machine; give all machines one copy of its "
        "folder"
    }
    assert all(result.stop for result in results)


def command(encoder: Path, texts: Path, out: Path) -> list[str]:
    given = ["encode", str(encoder), str(texts), "--out", str(out), "--engine", "ray"]
    given += ["--dtype", "float32", "--keep", "id,text", "--workers", "2"]
    return [sys.executable, "-m", "llm2comp", *given]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_driver_that_is_killed_goes_on_and_leaves_no_process(
    encoder: Path, tmp_path: Path, sentences: list[str], how: signal.Signals
) -> None:
    texts, out = tmp_path / "texts", tmp_path / "out"
    write_texts(texts, 10, 500, sentences, longest=40)
    started = command(encoder, texts, out)
    with subprocess.Popen(started, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while process.poll() is None and len(parts(out)) < 3:
            time.sleep(0.01)
        process.send_signal(how)
        said = process.communicate()[0].decode()
    assert process.returncode == (-9 if how == signal.SIGKILL else 143), said
    assert how == signal.SIGKILL or said.splitlines()[-1].startswith("llm2comp: stopped by SIGTERM")
    end = time.monotonic() + 60
    while actors() and time.monotonic() < end:
        time.sleep(0.1)
    assert not actors()
    there = parts(out)
    assert 3 <= len(there) < 10
    again = subprocess.run(started, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert again.stdout.endswith(f"10 files are encoded, {len(there)} of them before\n")
    llm2comp.encode_files(encoder, texts, tmp_path / "alone", **OPTIONS)
    assert read_vectors(out) == read_vectors(tmp_path / "alone")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a small disk")
def test_a_full_disk_is_one_line_and_the_next_call_goes_on(
    encoder: Path, tmp_path: Path, sentences: list[str]
) -> None:
    texts, disk = tmp_path / "texts", tmp_path / "disk"
    write_texts(texts, 8, 500, sentences)
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here")
    out = disk / "out"
    try:
        full = subprocess.run(
            command(encoder, texts, out), capture_output=True, text=True, check=False
        )
        assert full.returncode == 2
        *_, line = full.stderr.strip().splitlines()
        assert line.startswith("llm2comp: disk full ([Errno 28] No space left on device) at part-")
        there = len(parts(out))
        assert there < 8
        subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
        done = llm2comp.encode_files(encoder, texts, out, **OPTIONS)
        assert (done.files, done.failed) == (8, {})
        assert done.unchanged >= there
        assert len(read_vectors(out)) == 4000
        assert not list(out.glob(".*.part"))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
