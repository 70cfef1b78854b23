"""Figures of analyses, in one style: colour-blind safe, readable in print, PNG and SVG."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm2comp.analysis.analyze import Analysis
from llm2comp.cache import whole_file
from llm2comp.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
"""Okabe and Ito's, told apart with any colour vision; the darker ones first."""
DASHES = ("-", "--", "-.", ":")
STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "savefig.dpi": 200,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "llm2comp",  # the same figure, the same file
}


@contextmanager
def _axes(width: float = 6.0, height: float = 3.6) -> Iterator["tuple[Figure, Axes]"]:
    """Yield a figure with one pair of axes, in the style, drawn without a screen."""
    try:
        import matplotlib as mpl
        from cycler import cycler
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("figures need matplotlib: pip install 'llm2comp[report]'") from error
    dashes = [DASHES[place // len(COLOURS) % len(DASHES)] for place in range(32)]
    colours = [COLOURS[place % len(COLOURS)] for place in range(32)]
    cycle = cycler(color=colours) + cycler(linestyle=dashes)
    with mpl.rc_context({**STYLE, "axes.prop_cycle": cycle}):
        figure = Figure(figsize=(width, height))
        yield figure, figure.add_subplot()


def _save(figure: "Figure", stem: Path) -> list[Path]:
    files = [stem.parent / f"{stem.name}.{kind}" for kind in ("png", "svg")]
    for file in files:
        kind = file.suffix[1:]
        metadata = {"Date": None} if kind == "svg" else None
        with whole_file(file) as partial:
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
    with _axes() as (figure, axes):
        for one in analyses:
            values = np.array(one.spectrum.singular_values)
            label = f"{one.model} (RankMe {one.spectrum.rankme:.0f})"
            axes.semilogy(np.arange(1, len(values) + 1), values / values[0], label=label)
        axes.set(xlabel="singular value", ylabel="over the largest", ylim=(1e-4, 1.5))
        axes.legend()
        return _save(figure, stem)


def memory(analysis: Analysis, stem: Path) -> list[Path]:
    """Draw the cosines between an encoder's memory tokens (paper, figure 6); see :func:`spectrum`.

    Raises:
        UserError: if the encoder has no memory tokens, or matplotlib is not installed.
    """
    if analysis.memory is None:
        raise UserError(f"{analysis.model} has no memory tokens to draw")
    cosines = np.array(analysis.memory.cosines)
    with _axes(4.6, 4.0) as (figure, axes):
        image = axes.imshow(cosines, cmap="cividis", vmin=min(0, cosines.min()), vmax=1)
        for (row, column), value in np.ndenumerate(cosines):
            colour = "black" if value > 0.6 else "white"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, size=7)
        axes.grid(visible=False)
        axes.set(xlabel="memory token", ylabel="memory token", title=analysis.model)
        figure.colorbar(image, label="mean cosine within a text")
        return _save(figure, stem)


def bars(rows: Sequence[tuple[str, float, float]], stem: Path, x: str) -> list[Path]:
    """Draw a horizontal bar a row with its deviation (paper, figure 2); see :func:`spectrum`.

    Args:
        rows: name, value and deviation, from the top.
        stem: path of the figure without ``.png`` and ``.svg``.
        x: what the values are.
    """
    with _axes(height=0.8 + 0.32 * len(rows)) as (figure, axes):
        names, values, deviations = zip(*rows, strict=True)
        places = range(len(rows))
        axes.barh(places, values, xerr=deviations, color=COLOURS[0], capsize=3)
        for place, value in zip(places, values, strict=True):
            axes.text(0.5, place, f"{value:.1f}", va="center", color="white", size=8)
        axes.set_yticks(places, names)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set(xlabel=x)
        return _save(figure, stem)


def lines(
    points: Mapping[str, Sequence[tuple[float, float, float]]], stem: Path, y: str
) -> list[Path]:
    """Draw values with deviations over a number, a line a name (paper, figures 3, 5 and 7).

    Args:
        points: by name: number, value and deviation.
        stem: path of the figure without ``.png`` and ``.svg``.
        y: what the values are.
    """
    with _axes() as (figure, axes):
        for name, line in points.items():
            xs, ys, deviations = zip(*line, strict=True)
            axes.errorbar(xs, ys, yerr=deviations, marker="o", capsize=3, label=name)
        numbers = sorted({number for line in points.values() for number, *_ in line})
        axes.set_xscale("log", base=2)
        axes.set_xticks(numbers, [f"{number:,.0f}" for number in numbers])
        axes.set(ylabel=y)
        if len(points) > 1:
            axes.legend()
        return _save(figure, stem)
