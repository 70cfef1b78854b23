"""Encode many files of texts into as many files of vectors."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from rich.progress import Progress

from llm2comp.errors import UserError, counted
from llm2comp.inference.bulk.encoding import Encoding, Settings
from llm2comp.inference.bulk.shards import Result, Shard, find_shards
from llm2comp.inference.bulk.vector_folder import FAILED, SKIPPED, VectorFolder
from llm2comp.utils.choices import Engine
from llm2comp.utils.progress import text_progress

TRIES = 2
"""A file that failed is tried again once, unless the mistake is in the file."""


class _Engine(Protocol):
    """What encodes files; see `LocalEngine` and `RayEngine`."""

    def encoding(self, known: Encoding | None, out: str) -> Encoding: ...

    def run(
        self, shards: Sequence[Shard], out: str, encoding: Encoding, progress: Progress, task: Any
    ) -> Iterator[Result]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Encoded:
    """What was done to a folder of vectors.

    Attributes:
        files: number of files of texts that have vectors now.
        unchanged: of these, how many had them before.
        rows: number of embeddings that were written.
        failed: why the other files have none, by the name of the file.
        failed_file: the file that lists them, if there are any.
        skipped: bad rows that were left out of the files that were encoded now.
        skipped_folder: lists them, a file for each file of texts that has any.
    """

    files: int
    unchanged: int
    rows: int
    failed: dict[str, str]
    failed_file: str
    skipped: int
    skipped_folder: str


def encode_files(
    settings: Settings,
    pattern: str,
    out: str,
    engine: Engine = "local",
    workers: int | None = None,
) -> Encoded:
    """Encode each file of texts into a `.parquet` file of the same name, in the same order of rows.

    A file of vectors appears only when it is whole. Files whose vectors are there are left out, so
    the same call continues one that was stopped.

    Args:
        settings: the model, and how it encodes.
        pattern: of the files of texts, as `llm2comp.inference.bulk.shards.find_shards` takes it.
        out: folder of the files of vectors; a path or a URL that fsspec takes.
        engine: `local` or `ray`.
        workers: number of processes or actors; None leaves it to the engine.

    Raises:
        UserError: if there are no files, the model cannot be loaded, `out` holds something else, or
            the disk is full. A bad row, unless it is skipped, ends its own file alone, which is
            then among those that failed.
    """
    shards = find_shards(pattern)
    folder = VectorFolder(out)
    folder.require_outside(shards, pattern, settings.model)
    with _started(engine, settings, workers) as started:
        encoding = started.encoding(folder.encoding(), folder.name)
        todo = folder.missing(shards, encoding, settings.on_bad_row)
        with folder.writing():
            folder.claim(encoding)
            done, failed = _encode_all(started, todo, folder, encoding) if todo else ([], {})
            folder.save_failed(failed)
    files = len(shards) - len(failed)
    unchanged = len(shards) - len(todo)
    return Encoded(
        files=files,
        unchanged=unchanged,
        rows=sum(result.rows for result in done),
        failed=failed,
        failed_file=f"{folder.name}/{FAILED}",
        skipped=sum(result.skipped for result in done),
        skipped_folder=f"{folder.name}/{SKIPPED}",
    )


def _encode_all(
    engine: _Engine, todo: Sequence[Shard], folder: VectorFolder, encoding: Encoding
) -> tuple[list[Result], dict[str, str]]:
    """Return what became of each file that was encoded, and the errors of the others."""
    done: list[Result] = []
    failed: dict[str, str] = {}
    left = list(todo)
    with text_progress() as progress:
        task = progress.add_task("", total=None)
        for _ in range(TRIES):
            again = set()
            if not left:
                break
            for result in engine.run(left, folder.url, encoding, progress, task):
                if result.stop:
                    raise UserError(result.error)
                if result.error:
                    failed[result.name] = result.error
                    again |= {result.name} if result.again else set()
                else:
                    done.append(result)
                    failed.pop(result.name, None)
                progress.update(task, description=f"{len(done):,} of {counted(len(todo), 'file')}")
            left = [shard for shard in left if shard.name in again]
    return done, failed


@contextmanager
def _started(engine: Engine, settings: Settings, workers: int | None) -> Iterator[_Engine]:
    """Start an engine, and close it after the block."""
    started: _Engine
    if engine == "ray":
        from llm2comp.inference.bulk.ray_engine import RayEngine

        started = RayEngine(settings, workers)
    else:
        from llm2comp.inference.bulk.local_engine import LocalEngine

        started = LocalEngine(settings, workers)
    try:
        yield started
    finally:
        started.close()
