"""Figures of analyses, in one style: colour-blind safe, readable in print, PNG and SVG."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from llm2comp.analysis.measure import Analysis
from llm2comp.errors import UserError
from llm2comp.utils.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
"""Okabe and Ito's, told apart with any colour vision; the darker ones first."""
DASHES = ("-", "--", "-.", ":")
FLOOR = 1e-4
"""Of the spectrum: smaller shares of the largest singular value are not drawn."""
MOST_NUMBERED = 10
"""Memory tokens, beyond which a heat map has no room for its numbers."""
MIDDLE = 0.47
"""Of cividis: black reads better above, white below."""
STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "savefig.dpi": 120,  # for the screen; the SVG prints
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "llm2comp",  # the same figure, the same file
}


Points = Sequence[tuple[float, float, float]]
"""Number, value and deviation; the deviation is NaN where there is none."""


class Bar(NamedTuple):
    """A bar; its deviation is NaN where there is none."""

    name: str
    group: str
    value: float
    deviation: float


@contextmanager
def _panels(count: int, width: float, height: float) -> "Iterator[tuple[Figure, list[Axes]]]":
    """Yield a figure and its panels, two a row, in the style, drawn without a screen.

    Args:
        count: of panels.
        width: of one, in inches.
        height: of one, in inches.
    """
    try:
        import matplotlib as mpl
        from cycler import cycler
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("figures need matplotlib: pip install 'llm2comp[report]'") from error
    # Neighbours differ in both, to be seen where one lies on the other; none comes twice.
    turns = range(len(DASHES))
    dashes = [DASHES[(turn + i) % len(DASHES)] for turn in turns for i in range(len(COLOURS))]
    colours = COLOURS * len(DASHES)
    cycle = cycler(color=colours) + cycler(linestyle=dashes)
    columns = min(count, 2)
    rows = -(-count // columns)
    with mpl.rc_context({**STYLE, "axes.prop_cycle": cycle}):
        figure = Figure(figsize=(columns * width, rows * height))
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        for unused in panels[count:]:
            unused.remove()
        yield figure, panels[:count]


def _save(figure: "Figure", stem: Path) -> list[Path]:
    files = [stem.parent / f"{stem.name}.{kind}" for kind in ("png", "svg")]
    for file in files:
        kind = file.suffix[1:]
        metadata = {"Date": None} if kind == "svg" else None
        with atomic_file(file) as partial:
            figure.savefig(partial, format=kind, metadata=metadata)
    return files


def spectrum(analyses: Sequence[Analysis], stem: Path) -> list[Path]:
    """Draw the singular values of encoders, each over its largest (paper, figure 4).

    Args:
        analyses: a line each.
        stem: path of the figure without ``.png`` and ``.svg``.

    Returns:
        The two files.

    Raises:
        UserError: if matplotlib is not installed.
    """
    with _panels(1, 6.0, 3.8) as (figure, (axes,)):
        lowest = 1.0
        for one in analyses:
            values = np.array(one.spectrum.singular_values)
            shares = values[values > 0] / values[0]
            lowest = min(lowest, shares[-1])
            label = f"{one.model} (RankMe {one.spectrum.rankme:.0f})"
            axes.semilogy(np.arange(1, len(shares) + 1), shares, label=label)
        axes.set(xlabel="singular value, by size", ylabel="over the largest")
        axes.set_ylim(max(FLOOR, 0.8 * lowest), 1.5)
        axes.legend(loc="upper right")
        return _save(figure, stem)


def memory(analyses: Sequence[Analysis], stem: Path) -> list[Path]:
    """Draw the cosines between memory tokens (paper, figure 6), a panel an encoder.

    Args:
        analyses: of encoders with memory tokens.
        stem: path of the figure without ``.png`` and ``.svg``.

    Returns:
        The two files.

    Raises:
        UserError: if matplotlib is not installed.
    """
    cosines = [(one.model, np.array(one.memory.cosines)) for one in analyses if one.memory]
    lowest = min(0.0, *(values.min() for _, values in cosines))
    with _panels(len(cosines), 3.4, 3.4) as (figure, panels):
        figure.set_layout_engine("compressed")  # of panels that are square
        for place, (axes, (name, values)) in enumerate(zip(panels, cosines, strict=True)):
            image = axes.imshow(values, cmap="cividis", vmin=lowest, vmax=1)
            tokens = range(len(values))
            axes.set(title=name, xlabel="memory token")
            if place % 2 == 0:
                axes.set_ylabel("memory token")
            axes.grid(visible=False)
            axes.spines[:].set_visible(False)
            axes.tick_params(length=0)
            if len(values) > MOST_NUMBERED:
                continue
            axes.set_xticks(tokens)
            axes.set_yticks(tokens)
            for (row, column), value in np.ndenumerate(values):
                share = (value - lowest) / (1 - lowest)
                axes.text(
                    column,
                    row,
                    f"{value:.2f}",
                    ha="center",
                    va="center",
                    color="black" if share > MIDDLE else "white",
                    size=7,
                )
        long = 10 * (len(panels) + 1)
        figure.colorbar(image, ax=panels, aspect=long, label="mean cosine within a text")
        return _save(figure, stem)


def bars(panels: Mapping[str, Sequence[Bar]], stem: Path, x: str) -> list[Path]:
    """Draw a horizontal bar a row, coloured by its group (paper, figure 2).

    Args:
        panels: rows from the top, by the title of their panel; the same names in each.
        stem: path of the figure without ``.png`` and ``.svg``.
        x: what the values are.

    Returns:
        The two files.

    Raises:
        UserError: if matplotlib is not installed.
    """
    every = [row for rows in panels.values() for row in rows]
    ends = [row.value + np.nan_to_num(row.deviation) for row in every]
    height = 1.0 + 0.24 * len(every) / len(panels)
    with _panels(len(panels), 4.2, height) as (figure, axes_of):
        for place, (axes, (title, rows)) in enumerate(zip(axes_of, panels.items(), strict=True)):
            for number, group in enumerate(dict.fromkeys(row.group for row in rows)):
                places = [i for i, row in enumerate(rows) if row.group == group]
                axes.barh(
                    places,
                    [rows[i].value for i in places],
                    xerr=[rows[i].deviation for i in places],
                    color=(COLOURS[number], 0.6),  # light enough for black numbers
                    label=group,
                    capsize=2,
                )
            for i, row in enumerate(rows):
                axes.text(0, i, f" {row.value:.1f}", va="center", size=7.5)
            axes.set_yticks(range(len(rows)), [row.name for row in rows] if place % 2 == 0 else [])
            axes.invert_yaxis()
            axes.grid(visible=False, axis="y")
            axes.set_axisbelow(True)
            axes.set(title=title, xlabel=x, xlim=(min(0.0, *ends), 1.02 * max(ends)))
        _legend(figure, axes_of[0])
        return _save(figure, stem)


def lines(panels: Mapping[str, Mapping[str, Points]], stem: Path, x: str, y: str) -> list[Path]:
    """Draw values with deviations over a number, a line a name (paper, figures 3, 5 and 7).

    Args:
        panels: points by the name of their line, by the title of their panel.
        stem: path of the figure without ``.png`` and ``.svg``.
        x: what the number is.
        y: what the values are.

    Returns:
        The two files.

    Raises:
        UserError: if matplotlib is not installed.
    """
    width, height = (6.0, 3.6) if len(panels) == 1 else (3.8, 2.8)
    with _panels(len(panels), width, height) as (figure, axes_of):
        for axes, (title, points) in zip(axes_of, panels.items(), strict=True):
            for name, line in points.items():
                xs, ys, deviations = zip(*line, strict=True)
                axes.errorbar(xs, ys, yerr=deviations, marker="o", ms=4, capsize=3, label=name)
            numbers = sorted({number for line in points.values() for number, *_ in line})
            axes.set_xscale("log", base=2)
            axes.set_xticks(numbers, [f"{number:,.0f}" for number in numbers])
            axes.set(title=title, xlabel=x, ylabel=y)
        _legend(figure, axes_of[0])
        return _save(figure, stem)


def _legend(figure: "Figure", axes: "Axes") -> None:
    """Put one legend above all panels, if there is something to tell apart."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
