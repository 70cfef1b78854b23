"""Scores of several models as one table: on the terminal, in Markdown, CSV or LaTeX."""

import csv
import io
from collections.abc import Mapping, Sequence

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llm2comp.evaluation.runner import Score

Rows = Mapping[str, Sequence[Score]]
"""Scores by the model's name, in the order of the rows."""
Extra = Mapping[str, Mapping[str, str]]
"""Further columns: their heading, then the cell by the model's name."""

Cells = list[list[str]]
"""The heading, then the rows of any table."""

MISSING = "-"


def show(rows: Rows, extra: Extra | None = None, console: Console | None = None) -> None:
    """Print the table: a row a model, a column a task, their mean, then further columns."""
    show_cells(score_cells(rows, extra), console)


def show_cells(cells: Cells, console: Console | None = None) -> None:
    """Print a table whose first column is of names and the others of numbers."""
    heading, *body = cells
    table = Table(box=None, pad_edge=False)
    table.add_column(heading[0])
    for title in heading[1:]:
        table.add_column(title, justify="right")
    for row in body:
        table.add_row(*map(Text, row))  # not read as markup
    (console or Console()).print(table)


def markdown(cells: Cells) -> str:
    """Return a table in Markdown, ending in a line break."""
    heading, *body = cells
    rule = ["---", *["---:"] * (len(heading) - 1)]
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in (heading, rule, *body)]
    return "".join(f"| {' | '.join(row)} |\n" for row in escaped)


def csv_text(cells: Cells) -> str:
    """Return a table as comma-separated values."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(cells)
    return stream.getvalue()


def latex(cells: Cells) -> str:
    """Return a table in LaTeX, for the package booktabs."""
    heading, *body = cells
    columns = "l" + "r" * (len(heading) - 1)
    text: str = pd.DataFrame(body, columns=heading).to_latex(
        index=False, escape=True, column_format=columns
    )
    return text


def score_cells(rows: Rows, extra: Extra | None = None) -> Cells:
    """Return a row a model, a column a task, their mean, then further columns."""
    tasks = list(dict.fromkeys(score.task for scores in rows.values() for score in scores))
    extra = extra or {}
    table = [["model", *tasks, "mean", *extra]]
    for name, scores in rows.items():
        points = {score.task: score.main_score for score in scores}
        table.append(
            [
                name,
                *(f"{points[task]:.1f}" if task in points else MISSING for task in tasks),
                # A mean over fewer tasks would not compare with its neighbours.
                f"{sum(points.values()) / len(tasks):.1f}"
                if len(points) == len(tasks)
                else MISSING,
                *(column.get(name, MISSING) for column in extra.values()),
            ]
        )
    return table
