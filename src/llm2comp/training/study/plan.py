"""What a study is: one recipe, the settings to compare, the seeds, and a key to tune."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from llm2comp.errors import UserError, counted
from llm2comp.evaluation.store import folder_name
from llm2comp.evaluation.tasks.registry import DEVELOPMENT
from llm2comp.recipe import Recipe, parse_recipe
from llm2comp.utils.texts import NotBlank
from llm2comp.utils.yaml_files import (
    Strict,
    apply_overrides,
    explain_validation_error,
    read_yaml,
)


class Tuning(Strict):
    """A grid of values for one key.

    Every setting tries equally many values with the first seed, so that all settings have the same
    budget. It takes the value whose trial is best on development tasks after its last stage. That
    trial is also the first seed's trial.
    """

    key: str
    """A key of the recipe, written as in an override: `pretext.learning_rate`."""
    values: list[int | float] = Field(min_length=2)
    """Values that every setting tries, unless it has its own."""
    values_of: dict[str, list[int | float]] = Field(default={})
    """By name of a setting, its own values, as many as `values` has."""
    tasks: list[str] = Field(default=["STSBenchmarkDev"], min_length=1)
    """Development tasks. The value with the best mean over them is taken. Test sets are refused."""

    def values_for(self, setting: str) -> list[int | float]:
        """Return the values that a setting tries."""
        return self.values_of.get(setting, self.values)


class Quick(Strict):
    """What `--quick` changes, so that the study ends in minutes."""

    seeds: list[int] = Field(default=[0], min_length=1)
    """Seeds of the quick version."""
    overrides: list[str] = Field(default=[])
    """Changes to the shared recipe."""
    settings: dict[str, list[str]] | None = None
    """Settings that replace those of the study; `null` keeps them."""


class Plot(Strict):
    """How to draw the scores as lines over a number of the recipe.

    Keys are written as in an override: `memory.tokens`. Their values are looked up in the recipe
    of each setting, so settings may have any names.
    """

    x: str
    """Key of the number on the x axis."""
    times: str | None = None
    """A second key whose number `x` is multiplied by: steps times batch size are samples."""
    label: str | None = None
    """Label of the x axis; `null` takes the key."""
    line: str | list[str] | None = None
    """Key whose value names the line of a setting, or several keys; `null` draws one line."""
    names: dict[str, str] = Field(default={})
    """What the legend calls a value of `line`, if not by the value. The values of several keys are
    joined by a comma and a space: `mntp, causal`."""

    def point(self, recipe: Recipe) -> tuple[str, float]:
        """Return the name of a recipe's line, which may be empty, and its place on the x axis.

        Raises:
            UserError: if a key is not in the recipe, or `x` is not a number above 0.
        """
        x = _positive(recipe, self.x)
        if self.times is not None:
            x *= _positive(recipe, self.times)
        keys = [self.line] if isinstance(self.line, str) else self.line or []
        line = ", ".join(str(recipe_value(recipe, key)) for key in keys)
        return self.names.get(line, line), x


class Study(Strict):
    """A whole study."""

    name: NotBlank
    """Name of the study, in messages and of its runs."""
    recipe: dict[str, Any]
    """The recipe that all trials share. Its `evaluation.baselines` are scored once."""
    settings: dict[NotBlank, list[str]] = Field(min_length=1)
    """For each row of the table, its name and its overrides of the recipe."""
    seeds: list[int] = Field(default=[0, 1, 2], min_length=1)
    """Seeds; every setting is trained with each of them."""
    tuning: Tuning | None = None
    """A key to tune for every setting; `null` tunes nothing."""
    compare: NotBlank | None = None
    """Name of the setting that all others are compared with, by a paired bootstrap; `null` compares
    nothing."""
    quick: Quick = Quick()
    """The small version that `--quick` runs."""
    plot: Plot | None = None
    """How to draw the figure; bars if there is no plot."""

    @property
    def size(self) -> int:
        """Number of trials."""
        only_tuned = len(self.tuning.values) - 1 if self.tuning else 0
        return len(self.settings) * (len(self.seeds) + only_tuned)


@dataclass(frozen=True)
class Trial:
    """One run of a study: a setting with a seed and, if a key is tuned, a value of it.

    Attributes:
        setting: name of the setting.
        seed: seed of the run.
        value: value of the tuned key; `None` if nothing is tuned.
        recipe: what is run.
    """

    setting: str
    seed: int
    value: Any
    recipe: Recipe

    @property
    def name(self) -> str:
        """Name of the trial and of its folder."""
        tuned = [] if self.value is None else [f"{self.value:g}"]
        return "-".join([_as_file(self.setting), *tuned, f"seed{self.seed}"])


def load_study(path: Path, *, quick: bool = False) -> Study:
    """Read and check a study.

    Args:
        path: the YAML file.
        quick: return the study's small version.

    Raises:
        UserError: if the file is missing, is not YAML, or has an unknown key, also within the
            recipe, an override or the plot. The message names the file and the key.
    """
    study = read_study(path)
    if study.compare is not None and study.compare not in study.settings:
        raise UserError(
            f"study {path}: compare: there is no setting {study.compare!r}; "
            f"the settings are {', '.join(study.settings)}"
        )
    if quick:
        study = _quick(study)
    if study.tuning:
        _check_tuning(study.tuning, study, path)
    # Building the trials finds a wrong override now, and not after hours of training.
    trials = first_trials(study)
    recipe_of_baselines(study)
    names = Counter(folder_name(one.name) for one in trials)
    if len(names) < len(trials):
        ((name, _),) = names.most_common(1)
        raise UserError(
            f"study {path}: two trials would be in the folder {name}: settings must differ in "
            "letters or digits, and the values of a tuned key in their first six digits"
        )
    if study.plot:
        for one in trials:
            try:
                study.plot.point(one.recipe)
            except UserError as error:
                raise UserError(f"study {path}: plot: setting {one.setting!r}: {error}") from error
    return study


def read_study(path: Path) -> Study:
    """Read a study, without a look at its recipe and the overrides.

    Raises:
        UserError: if the file is missing, is not YAML, or has an unknown key.
    """
    try:
        return Study.model_validate(read_yaml(path, "study"))
    except ValidationError as error:
        raise UserError(f"study {path}: {explain_validation_error(error)}") from error


def _check_tuning(tuning: Tuning, study: Study, path: Path) -> None:
    """Check that all settings have the same budget, and that no test set is used.

    Raises:
        UserError: if a setting has another number of values, or does not exist, or a task is not a
            development task.
    """
    if unknown := set(tuning.tasks) - set(DEVELOPMENT):
        raise UserError(
            f"study {path}: tuning.tasks: {sorted(unknown)[0]!r} is not a development task; "
            f"take one of {', '.join(DEVELOPMENT)}"
        )
    for setting, values in tuning.values_of.items():
        if setting not in study.settings:
            raise UserError(
                f"study {path}: tuning.values_of: there is no setting {setting!r}; "
                f"the settings are {', '.join(study.settings)}"
            )
        if len(values) != len(tuning.values):
            raise UserError(
                f"study {path}: tuning.values_of: {setting} has {counted(len(values), 'value')}, "
                f"and tuning.values has {len(tuning.values)}; give every setting the same "
                "number, so that all have the same budget"
            )


def _quick(study: Study) -> Study:
    settings = study.quick.settings or study.settings
    smaller = {
        "name": f"{study.name}-quick",
        "recipe": apply_overrides(study.recipe, study.quick.overrides),
        "settings": settings,
        "seeds": study.quick.seeds,
        "tuning": None,
        "compare": study.compare if study.compare in settings else None,
    }
    return study.model_copy(update=smaller)


def trial(study: Study, setting: str, seed: int, value: Any = None) -> Trial:
    """Return a setting's trial.

    Args:
        study: a study that has the setting.
        setting: name of the setting.
        seed: seed of the run.
        value: value of the tuned key, if one is tuned.

    Raises:
        UserError: if the setting's overrides do not make a recipe.
    """
    overrides = [*study.settings[setting], f"seed={seed}", "evaluation.baselines=[]"]
    if study.tuning and value is not None:
        overrides.append(f"{study.tuning.key}={value}")
    where = f"study {study.name}, setting {setting!r}"
    recipe = parse_recipe({"name": study.name} | study.recipe, overrides, where)
    return Trial(setting, seed, value, recipe)


def first_trials(study: Study) -> list[Trial]:
    """Return the trials of the first seed: one for each setting and tuned value.

    Raises:
        UserError: as `trial`.
    """
    return [
        trial(study, setting, study.seeds[0], value)
        for setting in study.settings
        for value in (study.tuning.values_for(setting) if study.tuning else [None])
    ]


def recipe_of_baselines(study: Study) -> Recipe | None:
    """Return the shared recipe if it names baselines, which are scored without a setting.

    A study without baselines may leave keys to its settings and to tuning.

    Raises:
        UserError: if it names baselines and is not whole.
    """
    if not (study.recipe.get("evaluation") or {}).get("baselines"):
        return None
    where = f"study {study.name}, the shared recipe, whose evaluation.baselines are scored"
    return parse_recipe({"name": study.name} | study.recipe, [], where)


def recipe_value(recipe: Recipe, key: str) -> Any:
    """Return the value of a recipe's key.

    Args:
        recipe: the recipe.
        key: written as in an override, with dots and with stages by their names: `pretext.steps`.

    Raises:
        UserError: if the recipe has no such key.
    """
    node: Any = recipe.model_dump()
    node |= {stage["stage"]: stage for stage in node["stages"]}
    for part in key.split("."):
        if isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, dict) and part in node:
            node = node[part]
        else:
            raise UserError(f"the recipe has no key {key!r}")
    return node


def _positive(recipe: Recipe, key: str) -> float:
    value = recipe_value(recipe, key)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise UserError(f"{key} is {value!r}, and a plot needs a number above 0")
    return value


def _as_file(name: str) -> str:
    return "".join(c if c.isalnum() or c in "+.=" else "-" for c in name.lower())
