"""Tables, files and curves of how much a memory holds, and answers of several encoders."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from llm2comp.analysis import figures
from llm2comp.analysis.reading import curves, gap
from llm2comp.analysis.reading.answers import GIVEN as QUESTIONED
from llm2comp.analysis.reading.answers import OF_TEXT, Answered, Answers, draw_questions
from llm2comp.analysis.reading.answers import answer as answers_of
from llm2comp.analysis.reading.capacity import CURVES, Capacity, measure
from llm2comp.errors import UserError
from llm2comp.inference.reading.reader import Reader
from llm2comp.utils.choices import Precision
from llm2comp.utils.files import atomic_file, require_folder
from llm2comp.utils.tables import MISSING, Cells, csv_text
from llm2comp.utils.terminal import Terminal
from llm2comp.utils.yaml_files import explain_validation_error

FILE = "capacity.json"


def capacity(
    names: Sequence[str],
    out: Path | None,
    data: str,
    lengths: Sequence[int],
    ks: Sequence[int],
    passages: int,
    seed: int,
    dtype: Precision,
    backbone: str | Path | None,
) -> list[Capacity]:
    """Measure encoders one after the other, with a progress bar, and write what was measured.

    The arguments and errors are those of `llm2comp.capacity`.
    """
    if not names:
        raise UserError("name an encoder whose memory is to be measured")
    if passages < 1 or any(number < 1 for number in (*lengths, *ks)):
        raise UserError("passages, lengths and k must be at least 1")
    if out is not None:
        require_folder(out)
        figures.require_matplotlib()  # before the work, which takes minutes
    measured = []
    with _progress() as progress:
        for name in names:
            bar = progress.add_task(name, total=passages)
            measured.append(
                measure(
                    Reader.open(name, dtype, backbone),
                    data,
                    lengths,
                    ks,
                    passages,
                    seed,
                    partial(progress.advance, bar),
                )
            )
    if out is not None:
        _write(measured, out)
    return measured


def answer(
    names: Sequence[str],
    out: Path | None,
    questions: int,
    seed: int,
    dtype: Precision,
    backbone: str | Path | None,
) -> list[Answers]:
    """Ask the backbones of encoders the same questions, with a progress bar, and write answers.

    The arguments and errors are those of `llm2comp.answer`.
    """
    if not names:
        raise UserError("name an encoder whose memory is to be read")
    if questions < 2:
        raise UserError(f"questions is {questions}; it must be at least 2")
    if out is not None:
        require_folder(out)
    drawn = draw_questions(questions, seed)
    measured: list[Answers] = []
    known: dict[tuple[object, ...], dict[str, Answered]] = {}
    with _progress() as progress:
        for name in names:
            bar = progress.add_task(name, total=len(QUESTIONED))
            reader = Reader.open(name, dtype, backbone)
            # What depends on the text alone is asked once for all encoders of a backbone.
            own = known.setdefault(reader.of_text, {})
            each = answers_of(reader, drawn, seed, partial(progress.advance, bar), own)
            own.update({case: each.given[case] for case in OF_TEXT})
            measured.append(each)
    if out is not None:
        with atomic_file(out / "answers.json") as partial_file:
            text = json.dumps([each.as_dict() for each in measured], indent=1, ensure_ascii=False)
            partial_file.write_text(text + "\n", encoding="utf-8")
    return measured


def _progress() -> Progress:
    """Return a progress bar on standard error."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    label = TextColumn("{task.description}")
    return Progress(label, *columns, console=Terminal(stderr=True))


def _write(measured: Sequence[Capacity], out: Path) -> None:
    """Write the JSON, the CSV and the curves into a folder."""
    with atomic_file(out / FILE) as partial_file:
        text = json.dumps([as_dict(each) for each in measured], indent=1, ensure_ascii=False)
        partial_file.write_text(text + "\n", encoding="utf-8")
    with atomic_file(out / "capacity.csv") as partial_file:
        partial_file.write_text(csv_text(numbers(measured)), encoding="utf-8")
    for name, figure in curves.all_of(measured).items():
        figures.lines(figure.panels, out / name, figure.x, figure.y, figure.level)


def as_dict(capacity: Capacity) -> dict[str, object]:
    """Return everything, for JSON; a length without end is None."""
    ends = {k: capacity.holds(k) for k in capacity.ks}
    holds = {k: end and _finite(end) for k, end in ends.items()}
    return asdict(capacity) | {"holds": holds}


def _finite(end: gap.Interval) -> dict[str, float | None]:
    return {name: x if math.isfinite(x) else None for name, x in end._asdict().items()}


def from_folder(folder: Path) -> list[Capacity]:
    """Return what `capacity` wrote into a folder.

    Raises:
        UserError: if there is no `capacity.json`, or it is not what was written.
    """
    file = folder / FILE
    try:
        written = TypeAdapter(list[Capacity]).validate_json(file.read_bytes())
    except OSError as error:
        raise UserError(
            f"{file}: {error.strerror}; `llm2comp capacity MODEL --out {folder}` writes it"
        ) from error
    except ValidationError as error:
        reason = explain_validation_error(error)
        raise UserError(f"{file} is not what `llm2comp capacity` writes: {reason}") from error
    for point in (point for each in written for point in each.points):
        if not all(point.losses.get(given) for given in CURVES):
            raise UserError(
                f"{file} is not what `llm2comp capacity` writes: losses of {point.length} tokens "
                "are missing"
            )
    return written


def numbers(capacities: Sequence[Capacity]) -> Cells:
    """Return the table for other programs: each mean and each standard error in its own column."""
    errors = [f"{given} standard error" for given in CURVES]
    ends = ["gap closed", "gap closed low", "gap closed high"]
    rows = [["model", "k", "tokens", "passages", *CURVES, *errors, *ends]]
    for capacity in capacities:
        for point in capacity.points:
            row: list[object] = [capacity.model, point.k, point.length, len(point.losses["full"])]
            row += [point.loss(given) for given in CURVES]
            row += [point.error(given) for given in CURVES]
            row += point.gap_closed or [""] * len(ends)
            rows.append(list(map(str, row)))
    return rows


def cells(capacities: Sequence[Capacity]) -> Cells:
    """Return the table of all encoders, one row per length and k; losses in nats per token."""
    rows = [["model", "k", "tokens", *CURVES.values(), "gap closed", "worth"]]
    for capacity in capacities:
        for point in capacity.points:
            worth = capacity.worth(point)
            rows.append(
                [
                    capacity.model,
                    str(point.k),
                    str(point.length),
                    *(f"{point.loss(given):.3f} ± {point.error(given):.3f}" for given in CURVES),
                    gap.in_words(point.gap_closed),
                    MISSING if worth is None else f"{worth:.0f}",
                ]
            )
    return rows
