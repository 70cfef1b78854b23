"""Processes that this package starts."""

import os
from functools import cache
from multiprocessing import parent_process
from threading import Thread


@cache
def end_with_parent() -> None:
    """End this process when its parent has ended, if `multiprocessing` started it.

    A parent that is killed does not end its children itself.
    """
    parent = parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()
