"""Look at the sources of all stages before the first one starts.

A missing file of stage 3 would otherwise be found after hours of training.
"""

from pathlib import Path

from llm2comp.data import pairs, sources
from llm2comp.data.drawn import origins
from llm2comp.data.drawn.rows import ROWS, SOURCES
from llm2comp.recipe import Stage, Supervised
from llm2comp.utils.files import atomic_file


def require_sources(stage: Stage, workdir: Path, on_bad_row: str) -> None:
    """Check the sources of a stage, and record what they are like as the run begins.

    Nothing is done for a stage that reads no source: one without steps, or one that has drawn its
    rows.

    Args:
        stage: a stage that is not done.
        workdir: its work folder, which keeps the record.
        on_bad_row: as in the recipe.

    Raises:
        UserError: if a source cannot be read, its first good row lacks a column, or a stage that
            mines has no source of plain pairs.
    """
    if not stage.steps or (workdir / ROWS).exists():
        return
    first_rows = []
    for source in stage.data:
        if isinstance(stage, Supervised):
            row = sources.require_good_row(source, pairs.REQUIRED, on_bad_row, pairs.OPTIONAL)
            pairs.require_one_kind(source, row)
            first_rows.append(row)
        else:
            sources.require_good_row(source, ["text"], on_bad_row)
    if isinstance(stage, Supervised):
        pairs.require_minable(stage, first_rows)
    record = workdir / SOURCES
    if not record.exists():
        with atomic_file(record) as partial:
            origins.write(partial, origins.record(stage.data, {}))
