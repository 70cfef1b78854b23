"""The tasks: those of this package, the 14 of the paper, and all others of mteb."""

import difflib
import functools
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import get_args

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
"""The paper's groups of tasks, in the paper's order."""


class PaperTask(BaseModel):
    """One of the paper's tasks.

    Attributes:
        type: the paper's group of tasks.
        instruction: the paper's instruction for queries.
        subset: the English part, if the data is in several languages.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: str
    instruction: str
    subset: str | None = None


@functools.cache
def paper_tasks() -> dict[str, PaperTask]:
    """Return the paper's tasks by their names in mteb, in the paper's order."""
    text = resources.files(__package__).joinpath("paper.yaml").read_text(encoding="utf-8")
    return TypeAdapter(dict[str, PaperTask]).validate_python(yaml.safe_load(text))


def choose(
    suite: Suite, names: Sequence[str] | None = None, *, quick: bool = False
) -> list[AbsTask]:
    """Return the tasks of a suite, or the named tasks.

    Args:
        suite: `offline` for the tasks of this package, or `paper` for those of the paper, which are
            mteb's and load their data from the hub.
        names: task names instead of the suite, as `tasks` takes them.
        quick: take the smaller versions; the paper's tasks have none.

    Raises:
        UserError: if a name is unknown, or a task has no quick version.
    """
    if names is not None:
        return tasks(names, quick=quick)
    if suite not in get_args(Suite):
        raise UserError(f"suite {suite!r} is not one of {', '.join(get_args(Suite))}")
    if suite == "offline":
        return tasks(list(TASKS), quick=quick)
    if quick:
        raise UserError("the paper's tasks have no quick version; leave out --quick")
    return [
        mteb.get_task(name, hf_subsets=[task.subset] if task.subset else None)
        for name, task in paper_tasks().items()
    ]


def tasks(names: Sequence[str], *, quick: bool = False) -> list[AbsTask]:
    """Return tasks by name. A task of this package takes precedence over one of mteb.

    Args:
        names: names of tasks.
        quick: take the smaller versions; mteb's own tasks have none.

    Raises:
        UserError: if a name is unknown, none is given, or a task has no quick version.
    """
    own = TASKS | DEVELOPMENT
    if isinstance(names, str):
        raise UserError(f"tasks is one string; give a list, as [{names!r}]")
    if not names:
        raise UserError(f"no task is named; the tasks are {', '.join(own)}, and all tasks of mteb")
    return [own[name](quick=quick) if name in own else _of_mteb(name, quick) for name in names]


def load(task: AbsTask) -> None:
    """Load the data of a task. The data of mteb's own tasks comes from the hub.

    Raises:
        UserError: if the data is not available.
    """
    if isinstance(task, OfflineTask):
        task.load_data()
        return
    path = str(task.metadata.dataset["path"])
    try:
        if not Path(path).exists() and not hub_constants.HF_HUB_OFFLINE:
            hub.require_dataset(path)
        task.load_data()
    except Exception as error:  # datasets and its dependencies raise many types of exceptions
        raise UserError(
            f"task {task.metadata.name} needs {path} from the hub ({one_line(error)}); "
            "--suite offline needs no network once its data is downloaded"
        ) from error


def _of_mteb(name: str, quick: bool) -> AbsTask:
    try:
        task = mteb.get_task(name)
    except KeyError as error:
        near = difflib.get_close_matches(
            name, [*TASKS, *DEVELOPMENT, *_mteb_names()], n=1, cutoff=0
        )[0]
        raise UserError(
            f"unknown task {name!r}; did you mean {near!r}? The tasks are {', '.join(TASKS)}, "
            "and all tasks of mteb by their names"
        ) from error
    if quick:
        raise UserError(f"{name} is a task of mteb and has no quick version; leave out --quick")
    return task


@functools.cache
def _mteb_names() -> list[str]:
    return [task.metadata.name for task in mteb.get_tasks(modalities=["text"])]
