"""Processes that this package starts. This module is light, because a worker imports it first."""

import os
import time
from collections.abc import Callable
from threading import Thread
from typing import Any

SECONDS = 0.5
"""Time between two looks at whether the parent lives."""


class EndWithParent:
    """Ends the process that it is sent to when the process that sent it has ended.

    It works as soon as it is unpickled. What is sent after it may import libraries for many
    seconds, in which a worker of a parent that was killed would live on.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _end_with, (os.getpid(),)


def run(_: object, function: Callable[..., None], *arguments: object) -> None:
    """Call a function. As an initializer, it lets an `EndWithParent` be unpickled first."""
    function(*arguments)


def _end_with(parent: int) -> None:
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(SECONDS)
        os._exit(1)

    Thread(target=watch, daemon=True).start()
