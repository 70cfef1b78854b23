"""The checkpoints of a stage: which are whole, and where training continues."""

import json
import logging
import shutil
from pathlib import Path

from llm2comp.errors import UserError, one_line
from llm2comp.training.monitoring.run_log import RunLog
from llm2comp.utils.checksums import require_unchanged

logger = logging.getLogger("llm2comp")

LOG_MARK = "log.json"
"""File of a checkpoint with the place in the run's log that it belongs to."""
HEALTH = "health.json"
"""File of a checkpoint with what the health of the stage was judged by."""

MINED = "mined"
"""Part of the name of a folder with the negatives of a round of mining, beside the rows."""


def last_checkpoint(workdir: Path) -> Path | None:
    """Return the newest whole checkpoint in a stage's work folder; `None` if there is none."""
    return next((c for c in _checkpoints(workdir) if _damage(c) is None), None)


def checkpoint_after(workdir: Path, step: int) -> Path:
    """Return the checkpoint of a step.

    Raises:
        UserError: if it is missing or damaged.
    """
    checkpoint = workdir / f"checkpoint-{step}"
    damage = _damage(checkpoint)
    if damage is not None:
        raise UserError(
            f"{checkpoint}, which holds the best step, cannot be used: {damage}; remove {workdir} "
            "to train the stage again"
        )
    return checkpoint


def start_log(log: RunLog, stage: str, workdir: Path) -> None:
    """Remove a stage's damaged checkpoints, and continue its log where the last whole one was.

    Args:
        log: of the run.
        stage: that begins or continues.
        workdir: its work folder.

    Raises:
        UserError: if the part of the log before the checkpoint has changed.
    """
    for checkpoint in _checkpoints(workdir):
        damage = _damage(checkpoint)
        if damage is None:
            mark = checkpoint / LOG_MARK
            log.start_stage(
                stage,
                json.loads(mark.read_text(encoding="utf-8")) if mark.exists() else None,
                step_of(checkpoint),
            )
            return
        logger.warning("%s is not used: %s", checkpoint, damage)
        shutil.rmtree(checkpoint)
    log.start_stage(stage, None)


def _checkpoints(workdir: Path) -> list[Path]:
    """Return the checkpoints in a work folder, the newest first."""
    found = [c for c in workdir.glob("checkpoint-*") if c.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """Return the step after which a checkpoint was written, or negatives were mined."""
    return int(checkpoint.name.rpartition("-")[2])


def _damage(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint; None if it is whole.

    The Trainer writes `trainer_state.json` last, and then come the checksums. A checkpoint without
    a readable state was cut off while it was written. Older versions wrote no checksums.
    """
    try:
        json.loads((checkpoint / "trainer_state.json").read_bytes())
        require_unchanged(checkpoint)
    except (OSError, ValueError, UserError) as error:
        return one_line(error)
    return None
