"""What every task of this package adds to its mteb task."""

from abc import abstractmethod
from typing import Any

from mteb.abstasks import AbsTask


class OfflineTask(AbsTask):
    """An mteb task that loads its data from the catalogue.

    A subclass names its mteb task type beside this class and implements
    :meth:`read`, which sets ``dataset``, ``texts`` and ``samples``.

    Args:
        quick: take the task's smaller version; its metadata say what that is.
    """

    texts: int = 0
    """Texts that are encoded, known once the data are loaded."""
    samples: int = 0
    """What the score is taken over: pairs, questions."""

    def __init__(self, quick: bool = False) -> None:
        super().__init__()
        self.quick = quick

    def load_data(self, *_: Any, **__: Any) -> None:
        """Load the data once, without touching the hub."""
        if not self.data_loaded:
            self.read()
            self.data_loaded = True

    @abstractmethod
    def read(self) -> None:
        """Set ``dataset``, ``texts`` and ``samples``."""
