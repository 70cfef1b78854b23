"""What a study is: one recipe, the settings to compare in it, seeds, and how a rate is tuned."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from llm2comp.errors import UserError
from llm2comp.evaluation.tasks.registry import DEVELOPMENT
from llm2comp.recipe import Recipe, Strict, explain_validation_error, parse_recipe
from llm2comp.utils.yaml_files import apply_overrides, read_yaml


class Tuning(Strict):
    """A grid of one key; each setting takes the value that is best on development tasks.

    Every setting has the same grid and so the same budget. A trial is a cell with the first
    seed, and serves as that seed's cell if its value is chosen.
    """

    key: str
    """Of the recipe, as in an override: ``pretext.learning_rate``."""
    values: list[Any] = Field(min_length=2)
    tasks: list[str] = Field(default=list(DEVELOPMENT), min_length=1)
    """Judges, by their mean; test sets are refused."""


class Quick(Strict):
    """What ``--quick`` changes, so that the study ends in minutes."""

    seeds: list[int] = Field(default=[0], min_length=1)
    overrides: list[str] = Field(default=[])
    """Of the shared recipe."""
    settings: dict[str, list[str]] | None = None
    """In the place of the study's; the same ones when not given."""


class Study(Strict):
    """A whole study."""

    name: str
    recipe: dict[str, Any]
    """A recipe, shared by all cells; its ``evaluation.baselines`` are scored once."""
    settings: dict[str, list[str]] = Field(min_length=1)
    """By the name of a row: its overrides of the recipe."""
    seeds: list[int] = Field(default=[0, 1, 2], min_length=1)
    tuning: Tuning | None = None
    quick: Quick = Quick()

    @property
    def size(self) -> int:
        """Number of cells."""
        trials = len(self.tuning.values) - 1 if self.tuning else 0
        return len(self.settings) * (len(self.seeds) + trials)


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        setting: name of the row.
        seed: of the run.
        value: of the tuned key; None if nothing is tuned.
        run: the recipe.
    """

    setting: str
    seed: int
    value: Any
    run: Recipe

    @property
    def name(self) -> str:
        """Name of the cell and of its folder."""
        tuned = [] if self.value is None else [f"{self.value:g}"]
        return "-".join([_as_file(self.setting), *tuned, f"seed{self.seed}"])


def load_study(path: Path, *, quick: bool = False) -> Study:
    """Read and check a study.

    Args:
        path: of the YAML file.
        quick: its smaller version.

    Raises:
        UserError: if the file is missing, is not YAML, or says something unknown, also within the
            recipe or an override; the message names the file and the key.
    """
    try:
        study = Study.model_validate(read_yaml(path, "study"))
    except ValidationError as error:
        raise UserError(f"study {path}: {explain_validation_error(error)}") from error
    if quick:
        study = _quick(study)
    names = {_as_file(setting) for setting in study.settings}
    if len(names) < len(study.settings):
        raise UserError(f"study {path}: settings must differ in letters or digits")
    if study.tuning and (unknown := set(study.tuning.tasks) - set(DEVELOPMENT)):
        raise UserError(
            f"study {path}: tuning.tasks: {sorted(unknown)[0]!r} is not for development; "
            f"there are {', '.join(DEVELOPMENT)}"
        )
    for setting in study.settings:  # say now what would fail in hours
        cell(study, setting, study.seeds[0], study.tuning.values[0] if study.tuning else None)
    return study


def _quick(study: Study) -> Study:
    smaller = {
        "name": f"{study.name}-quick",
        "recipe": apply_overrides(study.recipe, study.quick.overrides),
        "settings": study.quick.settings or study.settings,
        "seeds": study.quick.seeds,
        "tuning": None,
    }
    return study.model_copy(update=smaller)


def cell(study: Study, setting: str, seed: int, value: Any = None) -> Cell:
    """Return a setting's cell.

    Raises:
        UserError: if its overrides do not make a recipe.
    """
    overrides = [*study.settings[setting], f"seed={seed}", "evaluation.baselines=[]"]
    if study.tuning and value is not None:
        overrides.append(f"{study.tuning.key}={value}")
    where = f"study {study.name}, setting {setting!r}"
    run = parse_recipe({"name": study.name} | study.recipe, overrides, where)
    return Cell(setting, seed, value, run)


def _as_file(name: str) -> str:
    return "".join(c if c.isalnum() or c in "+.=" else "-" for c in name.lower())
