"""Trackers of experiments that get losses and scores, such as Weights & Biases and MLflow.

They are the integrations of the Trainer of transformers. What they need (a project, a server, a
key) is set by the environment variables that it documents.
"""

from collections.abc import Sequence
from importlib import import_module

from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from llm2comp.errors import UserError

OURS = "tensorboard"
"""The run folder has its files without being asked."""


def require_trackers(names: Sequence[str]) -> None:
    """Check the trackers of a recipe before anything is trained.

    Raises:
        UserError: if one of them is unknown or not installed.
    """
    known = sorted(INTEGRATION_TO_CALLBACK.keys() - {OURS})
    installed = get_available_reporting_integrations()  # type: ignore[no-untyped-call]
    for name in names:
        if name == OURS:
            raise UserError(
                f"report_to: leave {OURS} out; the run folder has its files if it is installed"
            )
        if name not in known:
            raise UserError(f"report_to: {name!r} is not one of {', '.join(known)}")
        if name not in installed:
            raise UserError(f"report_to: {name} is not installed; install it, or leave it out")


def finish_trackers(names: Sequence[str]) -> None:
    """End what a stage reported to.

    The Trainer leaves the run of Weights & Biases open, and the next stage would go on in it.
    """
    if "wandb" in names:
        import_module("wandb").finish()
