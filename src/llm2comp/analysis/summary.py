"""The table of analyses, the notes under it, and the names of encoders in it."""

import re
from collections.abc import Sequence
from pathlib import Path

from llm2comp.analysis.measure import Analysis
from llm2comp.utils.tables import MISSING, Cells

HEADING = [
    "model",
    "RankMe",
    "participation",
    "PCs 90 %",
    "PCs 99 %",
    "mean cosine",
    "top share",
    "alignment",
    "uniformity",
    "hubness",
    "redundancy",
    "pooling loss",
]


def cells(analyses: Sequence[Analysis]) -> Cells:
    """Return a table with one row per encoder. docs/guides/inspect.md explains the columns."""
    return [HEADING, *map(_row, analyses)]


def _row(analysis: Analysis) -> list[str]:
    spectrum, memory = analysis.spectrum, analysis.memory
    return [
        analysis.model,
        f"{spectrum.rankme:.1f}",
        f"{spectrum.participation_ratio:.1f}",
        str(spectrum.components_90),
        str(spectrum.components_99),
        f"{spectrum.mean_cosine:.3f}",
        f"{spectrum.top_share:.3f}",
        MISSING if analysis.alignment is None else f"{analysis.alignment:.3f}",
        f"{analysis.uniformity:.2f}",
        f"{analysis.hubness:.2f}",
        MISSING if memory is None else f"{memory.redundancy:.3f}",
        MISSING if memory is None else f"{memory.pooling_loss:.3f}",
    ]


def notes(analyses: Sequence[Analysis]) -> list[str]:
    """Return lines about the texts, about measures on a sample, and about rogue dimensions."""
    lines = list(dict.fromkeys(analysis.data for analysis in analyses))
    for analysis in analyses:
        if analysis.compared < analysis.n:
            lines.append(
                f"{analysis.model}: uniformity and hubness are computed from a random sample of "
                f"{analysis.compared:,} of {analysis.n:,} embeddings"
            )
        dimension, share = max(
            analysis.spectrum.rogue.items(), key=lambda item: item[1], default=(0, 0.0)
        )
        if share > 1 / 3:
            lines.append(
                f"{analysis.model}: dimension {dimension} alone makes {share:.0%} of the mean "
                "cosine"
            )
    return lines


def short_names(models: Sequence[str]) -> list[str]:
    """Return the part of each path that tells it from the others.

    The last folders are dropped as long as they are the same in all paths. Then the shortest end
    that no other path has is kept. So `cells/ctkd/1-pretext` and `cells/nll/1-pretext` become
    `ctkd` and `nll`.
    """
    paths = [Path(model).parts for model in models]
    while len(set(paths)) > 1 and min(map(len, paths)) > 1 and len({p[-1] for p in paths}) == 1:
        paths = [path[:-1] for path in paths]
    return [Path(*_unique_end(path, set(paths) - {path})).as_posix() for path in paths]


def _unique_end(path: tuple[str, ...], others: set[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the shortest end of a path that no other path has, or the whole path."""
    ends = (path[-length:] for length in range(1, len(path)))
    return next((end for end in ends if end not in {o[-len(end) :] for o in others}), path)


def stems(analyses: Sequence[Analysis]) -> list[str]:
    """Return a different file name, without its suffix, for each analysis."""
    names: list[str] = []
    for analysis in analyses:
        plain = re.sub(r"[^\w.-]+", "__", analysis.model).strip("_.") or "model"
        used = sum(name == plain or name.startswith(f"{plain}~") for name in names)
        names.append(f"{plain}~{used + 1}" if used else plain)
    return names
