"""One thread per model embeds the texts of all requests, in batches that are filled by tokens."""

import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from sentence_transformers import SentenceTransformer

from llm2comp.data.length_batching import batch_by_tokens
from llm2comp.errors import counted
from llm2comp.inference.embed import embed, prompt_of
from llm2comp.inference.token_batching import TokenBatched, count_tokens
from llm2comp.inference.vector_format import Embeddings
from llm2comp.serving.token_ids import text_of
from llm2comp.utils.choices import Prompt

logger = logging.getLogger(__name__)

SMOOTHING = 0.1
"""Weight of the newest batch in the average time per text."""


class QueueFullError(Exception):
    """Too many texts wait already.

    Args:
        seconds: after which there is probably room.
    """

    def __init__(self, seconds: int) -> None:
        super().__init__(f"try again in {counted(seconds, 'second')}")
        self.seconds = seconds


class NotFiniteError(Exception):
    """An embedding is not finite, so the weights or the precision are wrong."""


@dataclass(frozen=True)
class Embedded:
    """What a request gets.

    Attributes:
        embeddings: `(texts, dimension)`, float32.
        tokens: that the model read, its own special tokens and memory tokens included.
    """

    embeddings: Embeddings
    tokens: int


@dataclass(eq=False)
class _Job:
    """The texts of a request. Their rows of `embeddings` are filled in any order."""

    inputs: list[str] | list[list[int]]
    prompt: Prompt | None
    future: "Future[Embedded]" = field(default_factory=Future)
    texts: list[str] = field(default_factory=list)
    tokens: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    embeddings: Embeddings | None = None
    left: int = 0


@dataclass(eq=False)
class _Call:
    """A function that needs the model."""

    function: Callable[[SentenceTransformer], Any]
    future: "Future[Any]" = field(default_factory=Future)

    def run(self, encoder: SentenceTransformer) -> None:
        """Call it, unless it was cancelled."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            self.future.set_result(self.function(encoder))
        except Exception as error:
            self.future.set_exception(error)


@dataclass(frozen=True)
class _Row:
    """A text that waits."""

    job: _Job
    number: int


class Batcher:
    """Embeds texts of many requests together; the requests take turns.

    Every batch has a text of the request whose turn it is, and those of the other texts that fit it
    in length. So a large request does not hold up the others, and little is padded.

    Only the thread uses the model: its tokenizer must not be used by two threads at once.

    Args:
        encoder: any sentence-transformers model.
        batch_size: texts of 64 tokens per batch.
        most_waiting: texts that may wait.
        on_batch: is called in the thread after each batch, with its texts, its tokens and seconds.
    """

    def __init__(
        self,
        encoder: SentenceTransformer,
        batch_size: int,
        most_waiting: int,
        on_batch: Callable[[int, int, float], None],
    ) -> None:
        self._encoder = encoder
        self._batch_size = batch_size
        self._most_waiting = most_waiting
        self._on_batch = on_batch
        self._new: queue.SimpleQueue[_Job | _Call | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._seconds_per_text = 0.0
        self.waiting = 0
        """Texts whose request has no answer yet."""
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def submit(
        self, inputs: list[str] | list[list[int]], prompt: Prompt | None
    ) -> "Future[Embedded]":
        """Let texts wait for their embeddings.

        Args:
            inputs: at least one text, or the ids of the tokens of each text.
            prompt: which prompt of the encoder is put before each text.

        Returns:
            Their embeddings in time. What is cancelled is not computed, except for the batch that
            is being computed. It raises `llm2comp.serving.token_ids.UnknownTokensError` if ids are
            not those of a text, and `NotFiniteError`.

        Raises:
            QueueFullError: if too many texts wait already.
        """
        job = _Job(inputs, prompt)
        self._accept(job, len(inputs))
        return job.future

    def call(self, function: Callable[[SentenceTransformer], Any]) -> "Future[Any]":
        """Let a function use the model in the thread, between two batches.

        Args:
            function: gets the model; it counts as one text.

        Returns:
            What the function returns or raises, in time. What is cancelled is not called.

        Raises:
            QueueFullError: if too many texts wait already.
        """
        call = _Call(function)
        self._accept(call, 1)
        return call.future

    def _accept(self, job: "_Job | _Call", texts: int) -> None:
        with self._lock:
            if self.waiting + texts > self._most_waiting:
                raise QueueFullError(max(1, math.ceil(self.waiting * self._seconds_per_text)))
            self.waiting += texts
        job.future.add_done_callback(lambda _: self._leave(texts))
        self._new.put(job)

    def close(self) -> None:
        """Embed what waits, and end the thread."""
        self._new.put(None)
        self._thread.join()

    def _leave(self, texts: int) -> None:
        with self._lock:
            self.waiting -= texts

    def _run(self) -> None:
        rows: list[_Row] = []
        calls: deque[_Call] = deque()
        closing = False
        while rows or calls or not closing:
            for job in self._take(wait=not rows and not calls and not closing):
                if job is None:
                    closing = True
                elif isinstance(job, _Call):
                    calls.append(job)
                else:
                    rows += self._prepare(job)
            if calls:  # one at a time, so that many do not hold up the texts
                calls.popleft().run(self._encoder)
            rows = [row for row in rows if not row.job.future.done()]
            if rows:
                batch = self._next_batch(rows)
                self._compute(batch)
                done = set(batch)
                rows = [row for row in rows if row not in done]
                # Requests take turns: the next batch begins with a text of another one.
                rows.sort(key=lambda row: row.job is batch[0].job)

    def _take(self, wait: bool) -> "list[_Job | _Call | None]":
        """Return the jobs that have come; wait for one if there is nothing else to do."""
        jobs = [self._new.get()] if wait else []
        while not self._new.empty():
            jobs.append(self._new.get())
        return jobs

    def _prepare(self, job: _Job) -> list[_Row]:
        """Return the texts of a job, none if it was cancelled or has no texts."""
        if job.future.cancelled():
            return []
        try:
            job.texts = [
                one if isinstance(one, str) else text_of(self._encoder, one) for one in job.inputs
            ]
            job.tokens = self._count(job.texts, job.prompt)
        except Exception as error:
            _fail(job, error)
            return []
        job.left = len(job.texts)
        return [_Row(job, number) for number in range(job.left)]

    def _count(self, texts: list[str], prompt: Prompt | None) -> npt.NDArray[np.int64]:
        """Return the tokens of each text; words, for a model that has no tokens."""
        if isinstance(self._encoder, TokenBatched) and self._encoder.pads_texts:
            return count_tokens(self._encoder, texts, prompt_of(self._encoder, prompt))
        return np.array([len(text.split()) for text in texts])

    def _next_batch(self, rows: Sequence[_Row]) -> list[_Row]:
        """Return the rows that are embedded together with the first one."""
        alike = [row for row in rows if row.job.prompt == rows[0].job.prompt]
        tokens = np.array([row.job.tokens[row.number] for row in alike])
        batches = batch_by_tokens(tokens, self._budget)
        return next([alike[place] for place in batch] for batch in batches if 0 in batch)

    @property
    def _budget(self) -> int:
        return self._batch_size * getattr(
            self._encoder, "tokens_per_text", TokenBatched.tokens_per_text
        )

    def _compute(self, batch: list[_Row]) -> None:
        """Embed rows, and answer the requests that have all of theirs."""
        start = time.perf_counter()
        texts = [row.job.texts[row.number] for row in batch]
        try:
            # Padding may take more than the budget, and must not divide the batch again.
            vectors = embed(self._encoder, texts, 2 * self._batch_size, batch[0].job.prompt)
        except Exception as error:
            logger.exception("a batch of %s failed", counted(len(batch), "text"))
            for row in batch:
                _fail(row.job, error)
            return
        for row, vector in zip(batch, vectors, strict=True):
            _fill(row, vector)
        seconds = time.perf_counter() - start
        self._seconds_per_text += SMOOTHING * (seconds / len(batch) - self._seconds_per_text)
        tokens = int(sum(row.job.tokens[row.number] for row in batch))
        self._on_batch(len(batch), tokens, seconds)


def _fill(row: _Row, vector: npt.NDArray[np.float32]) -> None:
    """Keep the embedding of a text; the last one of a request answers it."""
    job = row.job
    if not np.isfinite(vector).all():
        _fail(job, NotFiniteError("an embedding is not finite"))
        return
    if job.embeddings is None:
        job.embeddings = np.empty((len(job.texts), len(vector)), dtype=np.float32)
    job.embeddings[row.number] = vector
    job.left -= 1
    if job.left == 0 and job.future.set_running_or_notify_cancel():
        job.future.set_result(Embedded(job.embeddings, int(job.tokens.sum())))


def _fail(job: _Job, error: Exception) -> None:
    """Answer a request by an error, unless it was cancelled or has failed before."""
    if not job.future.done() and job.future.set_running_or_notify_cancel():
        job.future.set_exception(error)
