"""What every task of this package adds to its mteb task."""

from abc import abstractmethod
from typing import Any

from mteb.abstasks import AbsTask
from mteb.abstasks.task_metadata import TaskMetadata

from llm2comp.data import catalog


class OfflineTask(AbsTask):
    """An mteb task that loads its data from the catalogue.

    A subclass names its mteb task type beside this class and implements
    :meth:`read`, which sets ``dataset``, ``texts`` and ``samples``.

    Args:
        quick: take the task's smaller version; its metadata say what that is.
    """

    texts: int = 0
    """Texts that will be encoded, known once the data are loaded; at most, where mteb draws."""
    samples: int = 0
    """What the score is taken over: pairs, questions, documents."""

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


def metadata(name: str, source: str, description: str, **fields: Any) -> TaskMetadata:
    """Return a task's metadata, completed with what the catalogue says of its source.

    Args:
        name: of the task.
        source: name of the packaged source.
        description: whole and quick version, with their sizes.
        fields: what else mteb asks for: type, main_score, date, domains, task_subtypes, reference.
    """
    entry = catalog.entry(source)
    return TaskMetadata(
        name=name,
        dataset={"path": source, "revision": f"{entry.package}-{entry.version}"},
        description=description,
        **{
            "category": "t2c",
            "modalities": ["text"],
            "eval_splits": ["test"],
            "eval_langs": ["eng-Latn"],
            "license": "not specified",
            "annotations_creators": "human-annotated",
            "dialect": [],
            "sample_creation": "found",
            "bibtex_citation": "",
        }
        | fields,
    )
