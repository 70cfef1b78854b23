"""The base class of the tasks, and their metadata."""

from abc import abstractmethod
from typing import Any

from mteb.abstasks import AbsTask
from mteb.abstasks.task_metadata import TaskMetadata

from llm2comp.data import catalog


class OfflineTask(AbsTask):
    """An mteb task that loads its data from a packaged source.

    A subclass also inherits from the mteb class of its type, and implements `read`, which sets
    `dataset`, `texts` and `samples`.

    Args:
        quick: take the smaller version of the task, which its metadata describes.

    Attributes:
        texts: number of texts that are encoded, known after loading. It is an upper bound if mteb
            draws the texts.
        samples: number of pairs, questions or documents that are scored.
    """

    texts: int = 0
    samples: int = 0

    def __init__(self, quick: bool = False) -> None:
        super().__init__()
        self.quick = quick

    def load_data(self, *_: Any, **__: Any) -> None:
        """Load the data once, from its package and not from the hub."""
        if not self.data_loaded:
            self.read()
            self.data_loaded = True

    @abstractmethod
    def read(self) -> None:
        """Set `dataset`, `texts` and `samples`."""


def metadata(name: str, source: str, description: str, **fields: Any) -> TaskMetadata:
    """Return the metadata of a task, with the package and version of its source.

    Args:
        name: name of the task.
        source: name of the packaged source.
        description: description of the whole and of the quick version, with their sizes. Stored
            results are found by a hash that contains it, so do not change it.
        fields: other fields that mteb requires: type, main_score, date, domains, task_subtypes,
            reference.
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


def cut(text: str, characters: int) -> str:
    """Truncate a text after the last word that ends within its first `characters` characters."""
    if len(text) <= characters:
        return text
    whole_words, _, _ = text[: characters + 1].rpartition(" ")
    return whole_words or text[:characters]
