"""The rows of a stage: drawn once, written as Arrow, and read from there, also after a stop.

Training and a resumed run read the files by memory mapping, so the rows are never all in memory.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow.compute as pc
from datasets import List
from datasets.arrow_writer import ArrowWriter

from llm2comp.data.drawn import origins
from llm2comp.errors import UserError
from llm2comp.recipe import Stage, Supervised, Unsupervised
from llm2comp.utils.checksums import CHECKSUMS, require_unchanged, write_checksums
from llm2comp.utils.files import atomic_folder

logger = logging.getLogger("llm2comp")

ROWS = "rows"
"""Folder of the rows, in a stage's work folder."""
SOURCES = "sources.json"
"""File with what the sources were like: in the work folder when the run began, and beside the rows
when they were drawn."""
HELD_OUT = "held-out.arrow"
SUMMARY = "summary.json"
SETTINGS = "settings.json"
"""File with the settings that the rows depend on."""
DEPENDS_ON = frozenset(
    {
        "data",
        "steps",
        "batch_size",
        "objective",
        "passages",
        "split",
        "eval_passages",
        "eval_pairs",
        "views",
    }
)
"""Keys of a stage on which its rows depend."""

NEWER_KEYS = {"negatives": 1, "revision": None, "teacher": None}
"""Keys of a source that older rows lack, and the values that mean the same as none."""

Summary = dict[str, Any]
"""What was drawn, in numbers for the log."""


@dataclass(frozen=True)
class Rows:
    """The rows of a stage, read from files by memory mapping.

    Attributes:
        train: the rows to train on, as one dataset or as one for each source.
        held_out: the rows that are measured.
        summary: what was drawn, in numbers for the log.
    """

    train: datasets.DatasetDict
    held_out: datasets.Dataset
    summary: Summary


def drawn_once(
    workdir: Path,
    stage: Stage,
    seed: int,
    on_bad_row: str,
    draw: Callable[["RowFiles"], Summary],
) -> Rows:
    """Return the rows of a stage. They are drawn if its work folder does not hold them yet.

    A source that has changed since the run began, or since its rows were drawn, is named in a
    warning.

    Args:
        workdir: the stage's work folder.
        stage: the settings of the stage.
        seed: the seed of the run.
        on_bad_row: as in the recipe.
        draw: writes the rows, and returns what it drew in numbers.

    Raises:
        UserError: if the rows cannot be drawn, or a file of drawn rows is damaged.
    """
    folder = workdir / ROWS
    settings = _settings(stage, seed, on_bad_row)
    if _are_drawn(folder, settings):
        before = origins.read(folder / SOURCES)
        for name in origins.changed(before, origins.record(stage.data, before)):
            logger.warning(
                "%s has changed since %s drew its rows; the stage goes on with the rows that it "
                "drew, so its result stays the same",
                name,
                stage.stage,
            )
        return _read(folder)
    if any(workdir.glob("checkpoint-*")):
        logger.warning(
            "%s holds no rows, as an older version left it; they are drawn again, and they are "
            "the same only if the sources are",
            workdir,
        )
    before = origins.read(workdir / SOURCES)
    local = {name: known for name, known in before.items() if "commit" not in known}
    now = origins.record(stage.data, local)  # the hub is asked again, as it is read now
    for name in origins.changed(before, now):
        logger.warning(
            "%s has changed since the run began; %s draws from it as it is now", name, stage.stage
        )
    with atomic_folder(folder) as partial:
        files = RowFiles(partial)
        drawn = draw(files)
        _write_json(partial / SUMMARY, {"names": files.names, "drawn": drawn})
        _write_json(partial / SETTINGS, settings)
        origins.write(partial / SOURCES, now)
        write_checksums(partial)
    return _read(folder)


class RowFiles:
    """The Arrow files of a stage's rows, while they are written.

    Args:
        folder: where they are written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: list[str] = []

    @contextmanager
    def train(self, name: str, features: Mapping[str, Any], batch: int) -> Iterator[ArrowWriter]:
        """Yield the writer of one dataset to train on.

        Args:
            name: its name.
            features: its columns and their types. Rows have no other columns.
            batch: rows that are kept in memory before they are written.
        """
        self.names.append(name)
        with arrow_writer(_train_file(self.folder, len(self.names) - 1), features, batch) as writer:
            yield writer

    def rewrite(
        self,
        name: str,
        features: Mapping[str, Any],
        batch: int,
        change: Callable[[dict[str, Any]], dict[str, Any]],
    ) -> None:
        """Change each row of a dataset that is written.

        Args:
            name: the name of the dataset.
            features: as they were when it was written.
            batch: rows that are kept in memory before they are written.
            change: returns the row that is written in the place of a row.
        """
        file = _train_file(self.folder, self.names.index(name))
        changed = file.with_suffix(".changed")
        with arrow_writer(changed, features, batch) as writer:
            for row in datasets.Dataset.from_file(str(file)):
                writer.write(change(row))
        changed.replace(file)

    @contextmanager
    def held_out(self, features: Mapping[str, Any]) -> Iterator[ArrowWriter]:
        """Yield the writer of the rows that are measured."""
        with arrow_writer(self.folder / HELD_OUT, features, 1000) as writer:
            yield writer


def warn_if_none_are_held_out(stage: Unsupervised | Supervised, held_out: int) -> None:
    """Warn if a stage trains on all of its rows, or on all but one, though it is to hold out some.

    Args:
        stage: the stage.
        held_out: how many rows are held out. One alone cannot be measured.
    """
    if held_out < min(stage.eval_pairs, 2):
        logger.warning(
            "%s: all rows%s are trained on, so there is no held-out loss and no warning of "
            "collapse; lower steps, or use evaluation.during",
            stage.stage,
            " but one" if held_out else "",
        )


@contextmanager
def arrow_writer(file: Path, features: Mapping[str, Any], batch: int) -> Iterator[ArrowWriter]:
    """Yield a writer of rows, which writes a batch of them at once."""
    columns = datasets.Features(features)
    with ArrowWriter(path=str(file), features=columns, writer_batch_size=batch) as writer:
        yield writer
        writer.finalize()


def _are_drawn(folder: Path, settings: dict[str, Any]) -> bool:
    """Return whether a folder holds the rows of these settings, all of them undamaged.

    A run whose sizes a plan decides may have drawn rows for other sizes before it was stopped.

    Raises:
        UserError: if a file is damaged.
    """
    if not folder.exists():
        return False
    try:
        if not (folder / CHECKSUMS).exists():
            raise UserError(f"{folder / CHECKSUMS} is missing")
        require_unchanged(folder)
    except UserError as error:
        raise UserError(f"{error}; remove {folder} to draw the rows again") from error
    found: object = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    return found == settings


def _read(folder: Path) -> Rows:
    summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    train = {
        name: _without_empty(datasets.Dataset.from_file(str(_train_file(folder, place))))
        for place, name in enumerate(summary["names"])
    }
    held_out = datasets.Dataset.from_file(str(folder / HELD_OUT))
    return Rows(datasets.DatasetDict(train), held_out, summary["drawn"])


def _without_empty(dataset: datasets.Dataset) -> datasets.Dataset:
    """Return a dataset without the columns that no row has a value in."""
    table = dataset.data
    empty = [
        name
        for name, kind in dataset.features.items()
        if table.column(name).null_count == len(dataset)
        or (isinstance(kind, List) and not pc.sum(pc.list_value_length(table.column(name))).as_py())
    ]
    return dataset.remove_columns(empty) if len(dataset) else dataset


def _settings(stage: Stage, seed: int, on_bad_row: str) -> dict[str, Any]:
    chosen = stage.model_dump(mode="json", include=set(DEPENDS_ON))
    if chosen.get("views") == "dropout":
        del chosen["views"]  # older rows lack the key, and they are not to be drawn again
    for one in chosen["data"]:
        for key, default in NEWER_KEYS.items():
            if one[key] == default:
                del one[key]  # for the same reason
    return {"seed": seed, "on_bad_row": on_bad_row} | chosen


def _train_file(folder: Path, place: int) -> Path:
    return folder / f"train-{place}.arrow"


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
