"""Analyze encoders side by side: what ``llm2comp analyze`` does."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from llm2comp.analysis import figures, summary
from llm2comp.analysis.measure import Analysis, analyze_embeddings, analyze_model
from llm2comp.data.sample import Sample, draw
from llm2comp.inference.load import load
from llm2comp.utils.choices import Precision


def analyze(
    models: Sequence[str],
    out: Path,
    data: str,
    texts: int,
    seed: int,
    batch_size: int,
    dtype: Precision,
    merge_threshold: float | None,
) -> list[Analysis]:
    """Analyze models and write the files; arguments are those of :func:`llm2comp.api.analyze`."""
    found = []
    drawn: Sample | None = None
    for model, name in zip(models, summary.short_names(models), strict=True):
        if model.endswith(".npy"):
            found.append(analyze_embeddings(Path(model), name))
            continue
        drawn = drawn or draw(data, texts, seed)
        found.append(analyze_model(load(model, dtype, merge_threshold), name, drawn, batch_size))
    for model, one, stem in zip(models, found, summary.stems(found), strict=True):
        dataclasses.replace(one, model=model).write(out / f"{stem}.json")
    figures.spectrum(found, out / "spectrum")
    if with_memory := [one for one in found if one.memory is not None]:
        figures.memory(with_memory, out / "memory")
    return found
