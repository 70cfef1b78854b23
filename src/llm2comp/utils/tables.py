"""Tables as text: for the terminal, and as Markdown, CSV and LaTeX."""

import csv
import io

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llm2comp.utils.terminal import Terminal

Cells = list[list[str]]
"""A table: the heading, then one list of cells per row."""

UNLIMITED = 1_000_000
"""A width that no table has."""

MISSING = "-"
"""The cell of a value that does not exist."""


def show_cells(cells: Cells, console: Console | None = None) -> None:
    """Print a table with the first column aligned left (names) and the others right (numbers).

    A cell is never cut: a terminal that is too narrow gets cells of several lines, and a file or a
    pipe gets lines as long as they are.

    Args:
        cells: the table.
        console: where to print; standard output if it is not given.
    """
    heading, *rows = cells
    table = Table(box=None, pad_edge=False)
    table.add_column(heading[0], overflow="fold")
    for title in heading[1:]:
        table.add_column(title, justify="right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # as Text, because rich would read [..] in a str as markup
    show_table(table, console or Terminal())


def show_table(table: Table, console: Console) -> None:
    """Print a table in its own width, unless the console is a terminal, which has a width."""
    if not console.is_terminal:
        console = Terminal(file=console.file, width=UNLIMITED)
    console.print(table)


def markdown(cells: Cells) -> str:
    """Return a table in Markdown, which ends with a line break."""
    heading, *rows = cells
    rule = ["---", *["---:"] * (len(heading) - 1)]
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in (heading, rule, *rows)]
    return "".join(f"| {' | '.join(row)} |\n" for row in escaped)


def csv_text(cells: Cells) -> str:
    """Return a table as comma-separated values."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(cells)
    return stream.getvalue()


def latex(cells: Cells) -> str:
    """Return a table in LaTeX, for the package booktabs."""
    heading, *rows = cells
    alignment = "l" + "r" * (len(heading) - 1)
    text: str = pd.DataFrame(rows, columns=heading).to_latex(
        index=False, escape=True, column_format=alignment
    )
    return text
