"""What an encoder folder says of its making."""

import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

from llm2comp import recipe
from llm2comp.errors import UserError
from llm2comp.model.prompt_format import Form
from llm2comp.training.objectives.registry import OBJECTIVES
from llm2comp.version import __version__

LINEAGE = "llm2comp.json"


def read_lineage(folder: Path) -> dict[str, Any]:
    """Return what ``llm2comp.json`` says of an encoder folder.

    Raises:
        UserError: if the folder is not one of ours.
    """
    try:
        lineage: dict[str, Any] = json.loads((folder / LINEAGE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(
            f"{folder} is not an encoder folder of llm2comp: {LINEAGE} is missing or broken"
        ) from error
    return lineage


def form_of(lineage: dict[str, Any]) -> Form:
    """Return the form that an encoder's pretext gave it."""
    return OBJECTIVES[lineage["stages"][0]["objective"]].form


def new_lineage(run: recipe.Recipe) -> dict[str, Any]:
    """Start a lineage: backbone, memory tokens, and the versions that made them."""
    packages = ("torch", "transformers", "peft", "sentence-transformers", "tokenizers")
    return {
        "name": run.name,
        "backbone": run.backbone.model_dump(),
        "memory": run.memory.model_dump(),
        "prompts": run.prompts,
        "max_length": run.max_length,
        "seed": run.seed,
        "stages": [],
        "versions": {
            "llm2comp": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
    }
