"""Tables: on the terminal, in Markdown, CSV or LaTeX."""

import csv
import io

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

Cells = list[list[str]]


"""The heading, then the rows of any table."""


MISSING = "-"


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
