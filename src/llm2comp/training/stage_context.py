"""What a stage is handed: its settings, the folder it takes, and the folder it makes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from llm2comp.recipe import Recipe, StageBase
from llm2comp.training.run_log import RunLog

StageT = TypeVar("StageT", bound=StageBase, covariant=True)


@dataclass(frozen=True)
class StageContext(Generic[StageT]):
    """One stage of a run.

    Attributes:
        recipe: the whole recipe.
        stage: the recipe's stage.
        source: encoder folder of the stage before; None for the first stage.
        target: encoder folder to write.
        workdir: where checkpoints are kept until the target is written.
        log: losses and measurements go here.
    """

    recipe: Recipe
    stage: StageT
    source: Path | None
    target: Path
    workdir: Path
    log: RunLog
