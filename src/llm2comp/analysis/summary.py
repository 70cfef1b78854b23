"""Analyses as a table and as names of files."""

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
    """Return a row an encoder; what the columns are is said in docs/analysis.md."""
    return [HEADING, *map(_row, analyses)]


def _row(one: Analysis) -> list[str]:
    spectrum, memory = one.spectrum, one.memory
    return [
        one.model,
        f"{spectrum.rankme:.1f}",
        f"{spectrum.participation_ratio:.1f}",
        str(spectrum.components_90),
        str(spectrum.components_99),
        f"{spectrum.mean_cosine:.3f}",
        f"{spectrum.top_share:.3f}",
        MISSING if one.alignment is None else f"{one.alignment:.3f}",
        f"{one.uniformity:.2f}",
        f"{one.hubness:.2f}",
        MISSING if memory is None else f"{memory.redundancy:.3f}",
        MISSING if memory is None else f"{memory.pooling_loss:.3f}",
    ]


def notes(analyses: Sequence[Analysis]) -> list[str]:
    """Say what was read, and where less than all of it was compared."""
    lines = list(dict.fromkeys(one.data for one in analyses))
    for one in analyses:
        if one.compared < one.n:
            lines.append(
                f"{one.model}: uniformity and hubness are of {one.compared:,} of its {one.n:,} "
                "vectors, drawn by a seed"
            )
        worst = max(one.spectrum.rogue.items(), key=lambda item: item[1], default=None)
        if worst is not None and worst[1] > 1 / 3:
            lines.append(
                f"{one.model}: dimension {worst[0]} alone makes {worst[1]:.0%} of the mean cosine"
            )
    return lines


def short_names(models: Sequence[str]) -> list[str]:
    """Return each model's name without the folders that tell it from no other.

    First the last ones go, as long as all have the same, then the first ones:
    ``cells/ctkd/1-pretext`` and ``cells/nll/1-pretext`` are ``ctkd`` and ``nll``.
    """
    names = [Path(model).parts for model in models]
    while len(set(names)) > 1 and min(map(len, names)) > 1 and len({n[-1] for n in names}) == 1:
        names = [name[:-1] for name in names]
    return [Path(*_tail(name, set(names) - {name})).as_posix() for name in names]


def _tail(name: tuple[str, ...], others: set[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the shortest end of a path that no other ends with; all of it if there is none."""
    ends = (name[-length:] for length in range(1, len(name)))
    return next((end for end in ends if end not in {one[-len(end) :] for one in others}), name)


def stems(analyses: Sequence[Analysis]) -> list[str]:
    """Return a name of a file for each, all different."""
    names: list[str] = []
    for one in analyses:
        plain = re.sub(r"[^\w.-]+", "__", one.model).strip("_.") or "model"
        used = sum(name == plain or name.startswith(f"{plain}~") for name in names)
        names.append(f"{plain}~{used + 1}" if used else plain)
    return names
