"""Analyze encoders side by side: the work of `llm2comp analyze`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from llm2comp.analysis import figures, summary
from llm2comp.analysis.measure import Analysis, analyze_embeddings, analyze_model
from llm2comp.data.sample import Sample, draw
from llm2comp.errors import UserError
from llm2comp.inference.load import load, model_names
from llm2comp.utils.choices import Precision
from llm2comp.utils.files import require_folder, user_path


def analyze(
    models: Sequence[str | Path],
    out: Path,
    data: str,
    texts: int,
    seed: int,
    batch_size: int,
    dtype: Precision,
    merge_threshold: float | None,
) -> list[Analysis]:
    """Analyze models, write the JSON files and figures, and return the analyses.

    The arguments and errors are those of `llm2comp.analyze`.
    """
    names = model_names(models)
    if not names:
        raise UserError("name an encoder, or a .npy file, to analyze")
    require_folder(out)
    figures.require_matplotlib()  # before the work, which takes minutes
    analyses = []
    sample: Sample | None = None
    for name, short_name in zip(names, summary.short_names(names), strict=True):
        if name.endswith(".npy"):
            analyses.append(analyze_embeddings(user_path(name), short_name))
            continue
        sample = sample or draw(data, texts, seed)
        model = load(name, dtype, merge_threshold)
        analyses.append(analyze_model(model, short_name, sample, batch_size))
    for name, analysis, stem in zip(names, analyses, summary.stems(analyses), strict=True):
        dataclasses.replace(analysis, model=name).write(out / f"{stem}.json")
    figures.spectrum(analyses, out / "spectrum")
    if with_memory := [analysis for analysis in analyses if analysis.memory is not None]:
        figures.memory(with_memory, out / "memory")
    return analyses
