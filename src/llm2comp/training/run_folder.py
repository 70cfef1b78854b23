"""What a run folder holds: the recipe, the log, the scores and the encoders."""

import functools
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from llm2comp.errors import UserError, one_line
from llm2comp.evaluation import store
from llm2comp.recipe import STAGE_FOLDERS, Pretext, Recipe, parse_recipe
from llm2comp.training.monitoring.run_log import read_lines
from llm2comp.utils.files import atomic_file, removed_at_exit, require_folder
from llm2comp.utils.yaml_files import read_yaml

MODEL = "model"
"""Folder of the final encoder."""
RECIPE = "recipe.yaml"
LOG = "run.jsonl"
SCORES = "scores.json"
LOCK = ".lock"
"""File that is locked in a run folder while a process trains there."""
STAGE_LABELS = {
    "pretext": "after stage 1",
    "unsupervised": "after UCL",
    "supervised": "after SCL",
}
"""What tables call the encoder after each stage."""
CHECKSUM = "sha256"
"""Key of `scores.json` with the checksum of its rows."""
_CHECKSUM_LINE = "# The sha256 of the lines above: "
NAMES_OF_0_1 = {"own": "matched", "other": "mismatched"}
"""New names of held-out losses, by the names that version 0.1 wrote to the log."""


Scores = dict[str, list[store.Score]]
"""Scores by the name of a row."""


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Make a run folder, and keep other runs from training in it within the block.

    A folder that was made for a run that is then refused is removed, because nobody needs it.

    Raises:
        UserError: if another run trains in it, or it cannot be written.
    """
    require_folder(out)
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / LOCK, blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"another process trains in {out}; wait for it, or give another --out"
        ) from error
    try:
        with removed_at_exit(functools.partial((out / LOCK).unlink, missing_ok=True)):
            yield
    except UserError:
        if made and not _has_work(out):
            shutil.rmtree(out)
            with suppress(OSError):  # another run may be in the folder above by now
                for above in made[1:]:
                    above.rmdir()
        raise
    finally:
        lock.release()


def _has_work(out: Path) -> bool:
    """Return whether a run folder holds what took long: steps, labels or mined negatives."""
    encoders = [out / name for name in STAGE_FOLDERS.values()]
    work = [f".*.work/{name}" for name in ("checkpoint-*", "diverged.txt", "rows/teacher*")]
    found = [path for pattern in (*work, ".*.work/rows/mined-*") for path in out.glob(pattern)]
    if found or any(folder.exists() for folder in encoders):
        return True
    return any("step" in event for _, event in read_lines(out / LOG))


def as_yaml(recipe: Recipe) -> str:
    """Return a recipe with all its keys, as `llm2comp train` takes it."""
    settings = recipe.model_dump()
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    if yaml.safe_load(text) == settings:
        return text
    # PyYAML writes a next line character (U+0085) as it is, and reads it as another line break.
    return yaml.safe_dump(settings, sort_keys=False)


def write_recipe(recipe: Recipe, folder: Path) -> None:
    """Write `recipe.yaml` of a run; its last line is a comment with a checksum."""
    text = as_yaml(recipe)
    with atomic_file(folder / RECIPE) as partial:
        partial.write_text(f"{text}{_CHECKSUM_LINE}{_checksum(text)}\n", encoding="utf-8")


def read_recipe(folder: Path) -> Recipe:
    """Return the recipe of a run, with the present names for what version 0.1 did.

    Raises:
        UserError: if the file is missing, was edited or cannot be used.
    """
    path = folder / RECIPE
    content = read_yaml(path, "recipe")
    text, found, checksum = path.read_text(encoding="utf-8").rpartition(_CHECKSUM_LINE)
    if found and checksum != f"{_checksum(text)}\n":
        raise UserError(
            f"{path} is damaged or was edited since the run began: its checksum is another; "
            "restore it, or give a changed recipe with another --out"
        )
    for stage in content.get("stages") or []:
        opens = stage.get("bidirectional_from_step") is not None
        if opens and stage.get("attention") == "bidirectional":  # older versions took both
            stage["attention"] = "causal"  # as it was until that step
    return as_begun(parse_recipe(content, [], f"recipe {path}"), folder)


def as_begun(recipe: Recipe, folder: Path) -> Recipe:
    """Return a recipe that does what the version that began the run in a folder did with it.

    Raises:
        UserError: if the folder's recipe cannot be read.
    """
    return as_in_0_1(recipe) if is_of_0_1(folder) else recipe


def at_commit(commit: str | None, recipe: Recipe) -> Recipe:
    """Return the recipe with another `backbone.revision`."""
    backbone = recipe.backbone.model_copy(update={"revision": commit})
    return recipe.model_copy(update={"backbone": backbone})


def is_of_0_1(folder: Path) -> bool:
    """Return whether version 0.1 began a run; later versions always write `backbone.add_bos`."""
    return not chooses_bos(read_yaml(folder / RECIPE, "recipe"))


def as_in_0_1(recipe: Recipe) -> Recipe:
    """Return a recipe that does what version 0.1 did with it.

    BOS was before every text, reconstruction was that of the text before the split point, and MNTP
    masked all drawn tokens. A recipe that makes a choice of BOS keeps it.
    """
    stages = [
        stage.model_copy(
            update={
                "objective": {"reconstruction": "prefix_reconstruction"}.get(
                    stage.objective, stage.objective
                ),
                "masking": "all" if stage.objective == "mntp" else stage.masking,
            }
        )
        if isinstance(stage, Pretext)
        else stage
        for stage in recipe.stages
    ]
    update: dict[str, Any] = {"stages": stages}
    if recipe.backbone.add_bos is None:
        update["backbone"] = recipe.backbone.model_copy(update={"add_bos": True})
    return recipe.model_copy(update=update)


def chooses_bos(recipe: dict[str, Any]) -> bool:
    """Return whether a recipe, as YAML has it, has the key `backbone.add_bos`."""
    return "add_bos" in (recipe.get("backbone") or {})


def with_choice_of_bos(recipe: dict[str, Any], *, default: bool | None) -> dict[str, Any]:
    """Return a recipe, as YAML has it, with the key `backbone.add_bos`."""
    return recipe | {"backbone": {"add_bos": default} | (recipe.get("backbone") or {})}


def write_scores(folder: Path, rows: Scores) -> None:
    """Write `scores.json`, with a checksum."""
    content: dict[str, Any] = {name: [asdict(s) for s in scores] for name, scores in rows.items()}
    content[CHECKSUM] = _checksum(content)
    with atomic_file(folder / SCORES) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_scores(folder: Path) -> Scores:
    """Return the rows in `scores.json` of a run or a release; none if there is no such file.

    Raises:
        UserError: if the file is damaged.
    """
    path = folder / SCORES
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_bytes())
        if content.pop(CHECKSUM, None) not in (None, _checksum(content)):
            raise ValueError("its checksum is another")
        return {name: [store.Score(**s) for s in scores] for name, scores in content.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged or was edited ({one_line(error)}); remove it to score again"
        ) from error


def _checksum(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def read_events(folder: Path) -> list[dict[str, Any]]:
    """Return the events in a run's log, with the present names for what version 0.1 measured.

    Args:
        folder: the run folder.

    Raises:
        UserError: if there is no log, or a line is not JSON; the message names the file.
    """
    log = folder / LOG
    if not log.exists():
        raise UserError(f"{log} is missing; {folder} is not the folder of a run")
    events = [event for _, event in read_lines(log)]
    for event in events:
        if "held_out" in event:
            measured = event["held_out"]
            event["held_out"] = {NAMES_OF_0_1.get(n, n): value for n, value in measured.items()}
    return events


def require_none_later(recipe: Recipe, out: Path) -> None:
    """Check that nothing in a run folder was made from an encoder that is not there any more.

    Raises:
        UserError: if something was. It would be taken for what is made again.
    """
    names = [*(STAGE_FOLDERS[stage.stage] for stage in recipe.stages), MODEL]
    there = [(out / name).exists() for name in names]
    if False in there:
        missing = there.index(False)
        if later := [name for name, found in zip(names, there, strict=True) if found][missing:]:
            raise UserError(
                f"{out / names[missing]} is not there, and what was made from it still is; remove "
                f"{' and '.join(str(out / name) for name in later)} too, and repeat the command"
            )


def costs(recipe: Recipe, out: Path) -> dict[str, dict[str, str]]:
    """Return what each stage took.

    Args:
        recipe: the recipe that was run.
        out: the run folder.

    Returns:
        The columns `samples` and `time` of a table, each by the label of the stage.
    """
    events = read_events(out)
    samples = {
        STAGE_LABELS[n]: f"{count:,}" for n, count in trained_samples(recipe, events).items()
    }
    seconds = {
        STAGE_LABELS[event["stage"]]: f"{event['seconds']:.0f} s"
        for event in events
        if event.get("done") and "seconds" in event
    }
    return {"samples": samples, "time": seconds}


def trained_samples(recipe: Recipe, events: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return how many samples each stage has read, by its name.

    Args:
        recipe: the recipe that was run.
        events: of the run's log. A stage with `patience` was scored after its last step.
    """
    during = recipe.evaluation.during
    ends = {}
    if during is not None and during.patience is not None:
        ends = {event["stage"]: event["step"] for event in events if "scores" in event}
    return {s.stage: ends.get(s.stage, s.steps) * s.batch_size for s in recipe.stages}


@dataclass(frozen=True)
class Run:
    """A run folder that was read.

    Attributes:
        folder: the run folder.
        recipe: the recipe that was run.
        events: the events of the log, in order.
        scores: the scores by row; empty if nothing was scored.
    """

    folder: Path
    recipe: Recipe
    events: list[dict[str, Any]]
    scores: Scores

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """Read a run folder.

        Raises:
            UserError: if a file in it cannot be read.
        """
        events = read_events(folder)
        return cls(folder, read_recipe(folder), events, read_scores(folder))

    @property
    def encoders(self) -> dict[str, Path]:
        """The encoder folders that exist, by the label of their stage."""
        folders = {
            STAGE_LABELS[stage.stage]: self.folder / STAGE_FOLDERS[stage.stage]
            for stage in self.recipe.stages
        }
        return {label: folder for label, folder in folders.items() if folder.is_dir()}

    @property
    def reproduce(self) -> str:
        """The recipe that was run, as YAML that `llm2comp train` takes."""
        return as_yaml(self.recipe)
