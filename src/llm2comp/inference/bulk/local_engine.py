"""Encode files one after another on this machine."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from rich.progress import Progress

from llm2comp.inference.bulk.encoding import Encoding, Settings
from llm2comp.inference.bulk.shard_file import Encoder
from llm2comp.inference.bulk.shards import Result, Shard
from llm2comp.inference.encode_file import workers_for
from llm2comp.utils.progress import track_texts


class LocalEngine:
    """Encodes files in this process, or in worker processes that share its model.

    Args:
        settings: how they are encoded.
        workers: number of processes; None for one.
    """

    def __init__(self, settings: Settings, workers: int | None) -> None:
        self.settings = settings
        self.workers = 1 if workers is None else workers

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder, which is loaded when it is first needed."""
        return Encoder(self.settings)

    def encoding(self, known: Encoding | None, out: str) -> Encoding:
        """Return what the vectors are, as `Encoder.encoding` does."""
        return self.encoder.encoding(known, out)

    def run(
        self, shards: Sequence[Shard], out: str, encoding: Encoding, progress: Progress, task: Any
    ) -> Iterator[Result]:
        """Yield what became of each file.

        Args:
            shards: the files of texts.
            out: URL of the folder of vectors.
            encoding: what the vectors are.
            progress: the progress display.
            task: the bar of texts in it.

        Raises:
            UserError: if the processes cannot be started, or one of them ended.
        """
        model = self.encoder.model
        with workers_for(model, self.workers) as pool, track_texts(model, progress, task, pool):
            for shard in shards:
                yield self.encoder.encode(shard, out, encoding, pool)

    def close(self) -> None:
        """Do nothing: the processes end with `run`."""
