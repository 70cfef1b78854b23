"""Which tasks there are: this package's own, the paper's fourteen, and any other of mteb's."""

import difflib
import functools
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import mteb
import yaml
from huggingface_hub import constants as hub_constants
from mteb.abstasks import AbsTask
from pydantic import BaseModel, ConfigDict, TypeAdapter

from llm2comp.data import hub
from llm2comp.errors import UserError, one_line
from llm2comp.evaluation.tasks.offline import OfflineTask
from llm2comp.evaluation.tasks.registry import DEVELOPMENT, TASKS
from llm2comp.utils.choices import Suite

TYPES = ("clustering", "retrieval", "sts", "classification", "reranking")
"""The paper's groups of tasks, in its order."""


class PaperTask(BaseModel):
    """One of the paper's tasks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: str
    """The paper's group."""
    instruction: str
    subset: str | None = None
    """Of a set in several languages."""


@functools.cache
def paper_tasks() -> dict[str, PaperTask]:
    """Return the paper's tasks by mteb's name, in the paper's order."""
    text = resources.files(__package__).joinpath("paper.yaml").read_text(encoding="utf-8")
    return TypeAdapter(dict[str, PaperTask]).validate_python(yaml.safe_load(text))


def choose(
    suite: Suite, names: Sequence[str] | None = None, *, quick: bool = False
) -> list[AbsTask]:
    """Return the tasks of a suite, or those that are named.

    Args:
        suite: ``offline``, or ``paper``, whose tasks are mteb's own, from the hub.
        names: of single tasks, as :func:`tasks` takes them.
        quick: take smaller versions; the paper's tasks have none.

    Raises:
        UserError: if a name is unknown, or a task has no quick version.
    """
    if names is not None:
        return tasks(names, quick=quick)
    if suite == "offline":
        return tasks(list(TASKS), quick=quick)
    if quick:
        raise UserError("the paper's tasks have no quick version; leave --quick out")
    return [
        mteb.get_task(task, hf_subsets=[about.subset] if about.subset else None)
        for task, about in paper_tasks().items()
    ]


def tasks(names: Sequence[str], *, quick: bool = False) -> list[AbsTask]:
    """Return tasks by name: this package's, else mteb's.

    Raises:
        UserError: if a name is unknown, or none is given.
    """
    own = TASKS | DEVELOPMENT
    if not names:
        raise UserError(f"no task named; the tasks are {', '.join(own)}, and any of mteb's")
    return [own[name](quick=quick) if name in own else _of_mteb(name, quick) for name in names]


def load(task: AbsTask) -> None:
    """Load a task's data; from the hub, if the task is mteb's own.

    Raises:
        UserError: if the hub cannot be reached, or does not give the data.
    """
    if isinstance(task, OfflineTask):
        task.load_data()
        return
    path = str(task.metadata.dataset["path"])
    try:
        if not Path(path).exists() and not hub_constants.HF_HUB_OFFLINE:
            hub.require_dataset(path)
        task.load_data()
    except Exception as error:  # datasets and the libraries below it have their own
        raise UserError(
            f"task {task.metadata.name} needs {path} of the hub ({one_line(error)}); "
            "--suite offline needs no network once its sets are fetched"
        ) from error


def _of_mteb(name: str, quick: bool) -> AbsTask:
    try:
        task = mteb.get_task(name)
    except KeyError as error:
        near = difflib.get_close_matches(name, [*TASKS, *_mteb_names()], n=1, cutoff=0)[0]
        raise UserError(
            f"unknown task {name!r}; did you mean {near!r}? The tasks are {', '.join(TASKS)}, "
            "and any of mteb's by its name there"
        ) from error
    if quick:
        raise UserError(f"{name} is mteb's own task and has no quick version; leave --quick out")
    return task


@functools.cache
def _mteb_names() -> list[str]:
    return [task.metadata.name for task in mteb.get_tasks(modalities=["text"])]
