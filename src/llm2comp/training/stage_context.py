"""What a stage is given: its settings, the folder it starts from, and the folder it writes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from llm2comp.model.lineage import Lineage
from llm2comp.recipe import Recipe, StageBase
from llm2comp.training.monitoring.run_log import RunLog

StageT = TypeVar("StageT", bound=StageBase, covariant=True)


@dataclass(frozen=True)
class StageContext(Generic[StageT]):
    """One stage of a run.

    Attributes:
        recipe: the whole recipe.
        stage: the settings of this stage.
        source: encoder folder of the stage before, or of the base; `None` for stage 1.
        target: encoder folder to write.
        workdir: folder of checkpoints, which is removed once the target is written.
        log: where losses and measurements are written.
        begun: lineage before the first stage, if it starts from a base.
        row_prompts: for each source of the stage, the prompts that its rows have before their
            queries, once they are drawn.
    """

    recipe: Recipe
    stage: StageT
    source: Path | None
    target: Path
    workdir: Path
    log: RunLog
    begun: Lineage | None = None
    row_prompts: list[list[str]] = field(default_factory=list)

    @property
    def lineage(self) -> Lineage:
        """The lineage of the encoder that the stage starts from; stage 1 has none."""
        if self.begun is not None:
            return self.begun
        assert self.source is not None
        return Lineage.read(self.source)
