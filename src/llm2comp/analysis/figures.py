"""Figures as PNG and SVG, in one style with colours for all kinds of colour vision."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from llm2comp.analysis.measure import Analysis
from llm2comp.errors import UserError
from llm2comp.utils.files import atomic_file
from llm2comp.utils.tables import MISSING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
"""The palette of Okabe and Ito, dark colours first. It suits all kinds of colour vision."""
DASHES = ("-", "--", "-.", ":")
LOOKS = [
    (COLOURS[i % len(COLOURS)], DASHES[(i // len(COLOURS) + i) % len(DASHES)])
    for i in range(len(COLOURS) * len(DASHES))
]
"""Colour and dashes of the lines of a panel. Consecutive lines differ in both, so that both are
visible where they overlap. No pair occurs twice."""
FLOOR = 1e-4
"""Singular values below this share of the largest one are not drawn."""
MOST_NUMBERED = 10
"""Maximum number of memory tokens for which a heat map has room for numbers."""
MIDDLE = 0.47
"""Position in the colour map cividis from which on black text is easier to read than white."""
LABELS_PER_INCH = 2.2
"""Labels of numbers for which an axis has room."""
STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "savefig.dpi": 120,  # enough for the screen; print the SVG
    "svg.fonttype": "none",  # text stays text instead of outlines
    "svg.hashsalt": "llm2comp",  # the same figure gives the same file
}

Points = Sequence[tuple[float, float, float | tuple[float, float]]]
"""Points of a line: x, y and the standard deviation of y, which is NaN if there is none.

In place of a deviation there may be how far an interval reaches below y and above it.
"""


class Bar(NamedTuple):
    """A bar.

    Attributes:
        name: name of the row.
        group: group of the row, which has one colour.
        value: length of the bar.
        deviation: standard deviation of the value; NaN if there is none.
    """

    name: str
    group: str
    value: float
    deviation: float


def require_matplotlib() -> None:
    """Check that figures can be drawn.

    Raises:
        UserError: if matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError("figures need matplotlib: pip install 'llm2comp[report]'") from error


@contextmanager
def _panels(count: int, width: float, height: float) -> "Iterator[tuple[Figure, list[Axes]]]":
    """Yield a figure and its panels, two per row. It needs no screen.

    Args:
        count: number of panels.
        width: width of a panel in inches.
        height: height of a panel in inches.
    """
    require_matplotlib()
    import matplotlib as mpl
    from cycler import cycler
    from matplotlib.figure import Figure

    colours, dashes = zip(*LOOKS, strict=True)
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
    """Write the PNG and the SVG, each completely or not at all."""
    files = [stem.parent / f"{stem.name}.{kind}" for kind in ("png", "svg")]
    for file in files:
        kind = file.suffix[1:]
        metadata = {"Date": None} if kind == "svg" else None
        with atomic_file(file) as partial:
            figure.savefig(partial, format=kind, metadata=metadata)
    return files


def spectrum(analyses: Sequence[Analysis], stem: Path) -> list[Path]:
    """Draw the singular values of encoders, divided by the largest one (paper, figure 4).

    Args:
        analyses: analyses of the encoders; each gets one line.
        stem: path of the figure without `.png` and `.svg`.

    Returns:
        The two files.

    Raises:
        UserError: if matplotlib is not installed.
    """
    with _panels(1, 6.0, 3.8) as (figure, (axes,)):
        lowest = 1.0
        for analysis in analyses:
            values = np.array(analysis.spectrum.singular_values)
            shares = values[values > 0] / values[0]
            lowest = min(lowest, shares[-1])
            label = f"{analysis.model} (RankMe {analysis.spectrum.rankme:.0f})"
            axes.semilogy(np.arange(1, len(shares) + 1), shares, label=label)
        axes.set(xlabel="rank of the singular value", ylabel="share of the largest")
        axes.set_ylim(max(FLOOR, 0.8 * lowest), 1.5)
        axes.legend(loc="upper right")
        return _save(figure, stem)


def memory(analyses: Sequence[Analysis], stem: Path) -> list[Path]:
    """Draw the mean cosines between memory tokens, one panel per encoder (paper, figure 6).

    Args:
        analyses: analyses of encoders with memory tokens.
        stem: path of the figure without `.png` and `.svg`.

    Returns:
        The two files.

    Raises:
        UserError: if matplotlib is not installed.
    """
    cosines = [(a.model, np.array(a.memory.cosines)) for a in analyses if a.memory]
    lowest = min(0.0, *(values.min() for _, values in cosines))
    with _panels(len(cosines), 3.4, 3.4) as (figure, panels):
        figure.set_layout_engine("compressed")  # for square panels
        for place, (axes, (name, values)) in enumerate(zip(panels, cosines, strict=True)):
            image = axes.imshow(values, cmap="cividis", vmin=lowest, vmax=1)
            tokens = range(len(values))
            axes.set(title=name, xlabel="number of the memory token")
            if place % 2 == 0:
                axes.set_ylabel("number of the memory token")
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
        aspect = 10 * (len(panels) + 1)
        figure.colorbar(image, ax=panels, aspect=aspect, label="cosine, mean over texts")
        return _save(figure, stem)


def bars(panels: Mapping[str, Sequence[Bar]], stem: Path, x: str) -> list[Path]:
    """Draw one horizontal bar per row, coloured by group (paper, figure 2).

    Args:
        panels: rows from top to bottom, by title of the panel. All panels have the same row names;
            a row without a value in a panel is NaN there.
        stem: path of the figure without `.png` and `.svg`.
        x: label of the values.

    Returns:
        The two files.

    Raises:
        UserError: if matplotlib is not installed.
    """
    all_rows = [row for rows in panels.values() for row in rows]
    ends = np.nan_to_num([row.value + np.nan_to_num(row.deviation) for row in all_rows])
    height = 1.0 + 0.24 * len(all_rows) / len(panels)
    with _panels(len(panels), 4.2, height) as (figure, axes_of):
        for place, (axes, (title, rows)) in enumerate(zip(axes_of, panels.items(), strict=True)):
            for number, group in enumerate(dict.fromkeys(row.group for row in rows)):
                places = [i for i, row in enumerate(rows) if row.group == group]
                axes.barh(
                    places,
                    [rows[i].value for i in places],
                    xerr=[rows[i].deviation for i in places],
                    color=(COLOURS[number], 0.6),  # light enough to read black numbers on it
                    label=group,
                    capsize=2,
                )
            for i, row in enumerate(rows):
                value = MISSING if np.isnan(row.value) else f"{row.value:.1f}"
                axes.text(0, i, f" {value}", va="center", size=7.5)
            axes.set_yticks(range(len(rows)), [row.name for row in rows] if place % 2 == 0 else [])
            axes.invert_yaxis()
            axes.grid(visible=False, axis="y")
            axes.set_axisbelow(True)
            axes.set(title=title, xlabel=x, xlim=(min(0.0, *ends), 1.02 * max(ends)))
        _legend(figure, axes_of)
        return _save(figure, stem)


def lines(
    panels: Mapping[str, Mapping[str, Points]],
    stem: Path,
    x: str,
    y: str,
    level: float | None = None,
) -> list[Path]:
    """Draw lines with error bars over a logarithmic x axis (paper, figures 3, 5 and 7).

    Args:
        panels: points by name of the line, by title of the panel. Lines of one name look alike in
            all panels.
        stem: path of the figure without `.png` and `.svg`.
        x: label of the x axis.
        y: label of the y axis.
        level: a y that gets a line across each panel.

    Returns:
        The two files.

    Raises:
        UserError: if matplotlib is not installed.
    """
    width, height = (6.0, 3.6) if len(panels) == 1 else (3.8, 2.8)
    looks = dict(zip(dict.fromkeys(itertools.chain(*panels.values())), itertools.cycle(LOOKS)))
    with _panels(len(panels), width, height) as (figure, axes_of):
        for axes, (title, points) in zip(axes_of, panels.items(), strict=True):
            for name, line in points.items():
                xs, ys, deviations = zip(*line, strict=True)
                colour, dashes = looks[name]
                axes.errorbar(
                    xs,
                    ys,
                    yerr=np.transpose(deviations),
                    color=colour,
                    linestyle=dashes,
                    marker="o",
                    ms=4,
                    capsize=3,
                    label=name,
                )
            if level is not None:
                axes.axhline(level, color="grey", linestyle=":", linewidth=1)
            numbers = sorted({number for line in points.values() for number, *_ in line})
            axes.set_xscale("log", base=2)
            axes.set_xticks(numbers, _labels(numbers, width))
            axes.set(title=title, xlabel=x, ylabel=y)
        _legend(figure, axes_of)
        return _save(figure, stem)


def _labels(numbers: Sequence[float], width: float) -> list[str]:
    """Return labels of a logarithmic axis, without those that would touch the one before.

    Args:
        numbers: in their order.
        width: of the panel in inches.
    """
    places = np.log2(numbers)
    least = (places[-1] - places[0]) / (LABELS_PER_INCH * width)
    labels, last = [], -np.inf
    for number, place in zip(numbers, places, strict=True):
        fits = place - last >= least
        shown = f"{number:,.0f}" if number == round(number) else f"{number:g}"
        labels.append(shown if fits else "")
        last = place if fits else last
    return labels


def _legend(figure: "Figure", panels: "Sequence[Axes]") -> None:
    """Put one legend of all panels above them, if it has more than one entry."""
    entries: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if len(entries) > 1:
        figure.legend(
            list(entries.values()), list(entries), loc="outside upper center", ncols=len(entries)
        )
