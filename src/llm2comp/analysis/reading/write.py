"""Tables, files and curves of how much a memory holds, and answers of several encoders."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from llm2comp.analysis import figures
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
    """Write `capacity.json`, `capacity.csv` and the curves into a folder."""
    with atomic_file(out / "capacity.json") as partial_file:
        text = json.dumps([as_dict(each) for each in measured], indent=1, ensure_ascii=False)
        partial_file.write_text(text + "\n", encoding="utf-8")
    with atomic_file(out / "capacity.csv") as partial_file:
        partial_file.write_text(csv_text(numbers(measured)), encoding="utf-8")
    panels = {
        f"{each.model}, k = {k}": {
            label: [(p.length, p.loss(given), p.error(given)) for p in each.of(k)]
            for given, label in CURVES.items()
        }
        for each in measured
        for k in each.ks
    }
    figures.lines(panels, out / "capacity", "tokens of the text", "loss, nats per token")


def as_dict(capacity: Capacity) -> dict[str, object]:
    """Return everything, for JSON; a length without end is None."""
    ends = {k: capacity.holds(k) for k in capacity.ks}
    holds = {k: end if math.isfinite(end) else None for k, end in ends.items()}
    return asdict(capacity) | {"holds": holds}


def numbers(capacities: Sequence[Capacity]) -> Cells:
    """Return the table for other programs: each mean and each standard error in its own column."""
    errors = [f"{given} standard error" for given in CURVES]
    rows = [["model", "k", "tokens", "passages", *CURVES, *errors, "gap closed"]]
    for capacity in capacities:
        for point in capacity.points:
            row: list[object] = [capacity.model, point.k, point.length, len(point.losses["full"])]
            row += [point.loss(given) for given in CURVES]
            row += [point.error(given) for given in CURVES]
            rows.append([str(value) for value in (*row, point.gap_closed)])
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
                    f"{point.gap_closed:.0%}",
                    MISSING if worth is None else f"{worth:.0f}",
                ]
            )
    return rows
