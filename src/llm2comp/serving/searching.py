"""The indexes of a server, which are searched in threads."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from llm2comp.retrieval.index import Index
from llm2comp.serving.batching import QueueFullError

THREADS = 4
"""Searches at the same time. LanceDB divides each of them among processors too."""
MOST_HITS = 10_000
"""Texts in the answer of a request."""
Found = TypeVar("Found")


@dataclass(frozen=True)
class ServedIndex:
    """An index that is open.

    Attributes:
        name: under which clients ask for it.
        index: is searched.
        model: name of the served model that embeds its queries.
    """

    name: str
    index: Index
    model: str


class Searcher:
    """Runs searches in threads, which are few, so that many searches wait.

    Args:
        most_waiting: searches that may wait.
    """

    def __init__(self, most_waiting: int) -> None:
        self._most_waiting = most_waiting
        self._pool = ThreadPoolExecutor(THREADS, "search")
        self._lock = threading.Lock()
        self.waiting = 0
        """Searches that are not done."""

    def submit(self, search: Callable[[], Found]) -> "Future[Found]":
        """Return what a function returns, in time. What is cancelled before it began is not run.

        Raises:
            QueueFullError: if too many searches wait already.
        """
        with self._lock:
            if self.waiting >= self._most_waiting:
                raise QueueFullError(1)
            self.waiting += 1
        future = self._pool.submit(search)
        future.add_done_callback(self._leave)
        return future

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def _leave(self, _: "Future[Found]") -> None:
        with self._lock:
            self.waiting -= 1
