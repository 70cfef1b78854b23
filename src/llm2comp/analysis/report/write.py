"""Write a report as one HTML file that needs no network."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from llm2comp.analysis import summary
from llm2comp.analysis.reading import curves
from llm2comp.analysis.reading.texts import Reading
from llm2comp.analysis.reading.write import cells as capacity_cells
from llm2comp.analysis.reading.write import from_folder
from llm2comp.analysis.report import plots
from llm2comp.analysis.report.gather import Content, gather
from llm2comp.data.sample import draw
from llm2comp.errors import UserError
from llm2comp.evaluation.results import score_cells
from llm2comp.inference.load import model_names
from llm2comp.inference.search import require_query
from llm2comp.recipe import Pretext
from llm2comp.training import run_folder
from llm2comp.training.run_folder import Run
from llm2comp.utils.choices import Precision
from llm2comp.utils.files import atomic_file, require_file
from llm2comp.utils.tables import MISSING, Cells
from llm2comp.version import __version__

QUERIES = (
    "what happens when jurors cannot agree on a verdict",
    "the calm middle of a hurricane",
    "illness from too little vitamin B1",
)
"""Default queries. A passage of BoolQ answers each of them in other words."""
TITLE_END = " · llm2comp</title>"
"""What the page of every version of this package has."""
TITLE_BYTES = 20_000
"""The title, which names all encoders, is within these bytes."""
WORSE, BETTER = "213, 94, 0", "0, 114, 178"
"""Colours of tokens that memory predicts worse and better than the full text, of `COLOURS`."""
STRONGEST = 4.0
"""A gap of this many nats has the strongest colour."""
TITLES = {"pretext": "Stage 1", "unsupervised": "UCL", "supervised": "SCL"}


def report(
    models: Sequence[str | Path],
    out: Path,
    data: str,
    texts: int,
    queries: Sequence[str],
    seed: int,
    batch_size: int,
    dtype: Precision,
    capacity: Path | None,
) -> Path:
    """Write a report and return `out`.

    The arguments and errors are those of `llm2comp.report`.
    """
    names = model_names(models)
    if not names:
        raise UserError("name a run folder, or encoders, to report")
    _require_page(out)
    for query in queries:
        require_query(query)
    plots.script()  # without plotly the error comes now, not after the work, which takes minutes
    capacities = from_folder(capacity) if capacity else []
    sample = draw(data, texts, seed)
    content = gather(names, sample, queries or QUERIES, batch_size, dtype)
    write(dataclasses.replace(content, capacities=capacities), out)
    return out


def _require_page(out: Path) -> None:
    """Check that a page can be written, and that it replaces nothing but an earlier report."""
    require_file(out)
    if out.exists():
        with out.open("rb") as file:
            if TITLE_END.encode() not in file.read(TITLE_BYTES):
                raise UserError(f"--out {out}: it is not a report; name another file")


def write(content: Content, out: Path) -> None:
    """Write the page, completely or not at all.

    Args:
        content: the content of the page.
        out: path of the HTML file.

    Raises:
        UserError: if plotly is not installed.
    """
    run = content.run
    environment = Environment(
        loader=PackageLoader("llm2comp.analysis.report", "."), autoescape=True
    )
    page = environment.get_template("page.html").render(
        content=content,
        script=Markup(plots.script()),
        subtitle=_subtitle(content),
        facts=_facts(content),
        stages=_stages(run) if run else None,
        scores=_scores(content) if content.rows else None,
        scores_note=_scores_note(content),
        curves=[(title, Markup(plot)) for title, plot in _curves(run)] if run else [],
        measures=summary.cells([encoder.analysis for encoder in content.encoders]),
        spectrum=Markup(plots.spectrum(content.encoders)),
        memories=[
            (encoder.name, Markup(plots.memory(encoder)))
            for encoder in content.encoders
            if encoder.analysis.memory is not None
        ],
        map=Markup(plots.text_map(content.encoders, content.sample.texts)),
        reading=content.reading,
        tokens=_tokens(content.reading) if content.reading else [],
        capacity=capacity_cells(content.capacities) if content.capacities else None,
        capacity_plots=[
            (title, Markup(plot))
            for kind in curves.all_of(content.capacities).values()
            for title, plot in plots.capacity(kind)
        ],
        recipe=run.reproduce if run else None,
        version=__version__,
        table=_table,
    )
    with atomic_file(out) as partial:
        partial.write_text(page, encoding="utf-8")


def _table(cells: Cells) -> Markup:
    heading, *body = cells
    rows = [Markup("").join(Markup("<th>{}</th>").format(title) for title in heading)]
    rows += [Markup("").join(Markup("<td>{}</td>").format(cell) for cell in row) for row in body]
    return Markup("\n").join(Markup("<tr>{}</tr>").format(row) for row in rows)


def _tokens(reading: Reading) -> list[tuple[str, str, str]]:
    """Return each predicted token of the first text, its colour, and what its losses are."""
    text = reading.texts[0]
    shown = []
    for token, memory, full in zip(
        text.predicted, text.losses["memory"], text.losses["full"], strict=True
    ):
        gap = memory - full
        strength = 0.6 * min(1.0, abs(gap) / STRONGEST)
        colour = f"rgba({WORSE if gap > 0 else BETTER}, {strength:.2f})"
        shown.append((token, colour, f"memory {memory:.2f}, full text {full:.2f}, gap {gap:+.2f}"))
    return shown


def _scores(content: Content) -> Markup:
    """Return the table of scores. All rows but the first show the difference to the first."""
    heading, base, *body = score_cells(content.rows)
    return _table([heading, base, *([row[0], *map(_delta, row[1:], base[1:])] for row in body)])


def _delta(cell: str, base: str) -> str:
    if MISSING in (cell, base):
        return cell
    gap = float(cell) - float(base)
    kind = "up" if gap > 0 else "down" if gap < 0 else ""
    return Markup('{} <small class="{}">{:+.1f}</small>').format(cell, kind, gap)


def _subtitle(content: Content) -> str:
    if content.run is None:
        return "Encoders side by side"
    recipe = content.run.recipe
    objective = next((s.objective for s in recipe.stages if isinstance(s, Pretext)), "")
    start = recipe.base or recipe.backbone.name
    about = f"A text encoder made of {start} by the recipe {recipe.name}"
    return f"{about}, stage 1 with the objective {objective}" if objective else about


def _facts(content: Content) -> list[tuple[str, str]]:
    """Return the numbers at the top of the page, each with its label."""
    last = content.encoders[-1]
    facts = [(str(last.analysis.dimension), "dimensions")]
    if content.run is not None:
        recipe = content.run.recipe
        seconds = sum(event.get("seconds", 0) for event in content.run.events if event.get("done"))
        samples = sum(run_folder.trained_samples(recipe, content.run.events).values())
        tokens = recipe.memory.tokens if last.lineage is None else last.lineage.num_memory_tokens
        facts += [
            (str(tokens), "memory tokens"),
            (f"{samples:,}", "training samples"),
            (f"{seconds / 60:.0f} min", "training"),
            (str(recipe.seed), "seed"),
        ]
    facts.append((f"{last.analysis.spectrum.rankme:.0f}", "effective dimension (RankMe)"))
    return facts


def _stages(run: Run) -> Cells:
    costs = run_folder.costs(run.recipe, run.folder)
    rows = [["stage", "data", "steps", "batch", "samples", "learning rate", "LoRA rank", "time"]]
    for stage in run.recipe.stages:
        label = run_folder.STAGE_LABELS[stage.stage]
        rows.append(
            [
                TITLES[stage.stage],
                ", ".join(source.source for source in stage.data),
                f"{stage.steps:,}",
                str(stage.batch_size),
                costs["samples"][label],
                f"{stage.learning_rate:g}",
                str(stage.lora.r) if stage.lora else "all weights",
                costs["time"].get(label, MISSING),
            ]
        )
    return rows


def _curves(run: Run) -> Sequence[tuple[str, str]]:
    """Return the plots of the stages that have begun, each with its title."""
    drawn = []
    for stage in run.recipe.stages:
        title = TITLES[stage.stage]
        drawn.append((f"{title}: loss", plots.curves(run.events, stage.stage)))
        drawn.append((f"{title}: held-out embeddings", plots.watch(run.events, stage.stage)))
    return [(title, plot) for title, plot in drawn if plot is not None]


def _scores_note(content: Content) -> str:
    """Say which versions of the tasks were scored, and what the small numbers are."""
    quick = [name for name, row in content.rows.items() if any(score.quick for score in row)]
    size = "Quick versions of the tasks." if quick else "Whole tasks."
    if quick and len(quick) < len(content.rows):
        size = f"Whole tasks, but quick versions for {', '.join(quick)}."
    return f"{size} Small numbers are differences to the first row. {content.note}"
