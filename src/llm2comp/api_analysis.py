"""The part of the Python API that looks into encoders: `analyze` and `report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm2comp.analysis.measure import Analysis
    from llm2comp.utils.choices import Precision


def analyze(
    models: Sequence[str | Path], out: str | Path, *,
    data: str = "boolq-pairs", texts: int = 1000, seed: int = 0, batch_size: int = 32,
    dtype: Precision = "auto", merge_threshold: float | None = None,
) -> list[Analysis]:  # fmt: skip
    """Measure how many directions the embeddings use, and how alike the memory tokens are.

    An analysis has the spectrum, effective dimensions, alignment, uniformity, hubness and, if there
    are memory tokens, their redundancy.

    Args:
        models: names or folders that `load` takes, or `.npy` files of embeddings.
        out: folder for one JSON file per encoder and two figures, `spectrum` and `memory`.
        data: packaged source, local file or hub dataset, with a column `text`, or with `anchor`
            and `positive`.
        texts: number of texts or pairs to draw from it.
        seed: seed of the random draw.
        batch_size: as in `encode`.
        dtype: as in `load`.
        merge_threshold: as in `load`.

    Raises:
        UserError: if a model or the data is not available, or matplotlib is not installed.

    Examples:
        >>> (analysis,) = llm2comp.analyze(["smollm2-135m-llm2comp"], "out", data="texts.txt")
        >>> analysis.spectrum.rankme > 1
        True
    """
    from llm2comp.analysis.analyze import analyze as analyze_all

    return analyze_all(models, Path(out), data, texts, seed, batch_size, dtype, merge_threshold)


def report(
    models: Sequence[str | Path], out: str | Path, *,
    data: str = "boolq-passages", texts: int = 300, queries: Sequence[str] = (), seed: int = 0,
    batch_size: int = 32, dtype: Precision = "auto",
) -> Path:  # fmt: skip
    """Write one HTML file about a run, or about several encoders side by side, and return `out`.

    Args:
        models: one run folder, or encoders that `load` takes.
        out: the HTML file. It needs no network.
        data: source of the texts for the map and the searches, as in `analyze`.
        texts: number of texts to draw from it.
        queries: queries to search for; three examples if none is given.
        seed: seed of the random draw.
        batch_size: as in `encode`.
        dtype: as in `load`.

    Raises:
        UserError: if a model or the data is not available, or plotly is not installed.

    Examples:
        >>> page = llm2comp.report(["smollm2-135m-llm2comp"], "report.html", data="texts.txt")
        >>> page.name
        'report.html'
    """
    from llm2comp.analysis.report.write import report as write_report

    return write_report(models, Path(out), data, texts, queries, seed, batch_size, dtype)
