"""Ask the Hugging Face hub, briefly, before a library would retry for minutes."""

from collections.abc import Callable
from pathlib import Path

import huggingface_hub
from huggingface_hub import HfApi, errors

from llm2comp.errors import UserError

REACH_SECONDS = 10.0


def require_model(name: str) -> None:
    """Check that a model is in the hub's local cache, or that the hub has it.

    Raises:
        UserError: if neither.
    """
    if cached(name) is None:
        _require("model", name, HfApi().model_info)


def require_dataset(name: str) -> None:
    """Check that the hub has a dataset.

    Raises:
        UserError: if it does not, or cannot be reached.
    """
    _require("dataset", name, HfApi().dataset_info)


def cached(name: str) -> Path | None:
    """Return a model's folder in the hub's local cache, if it is there."""
    try:
        config = huggingface_hub.try_to_load_from_cache(name, "config.json")
    except errors.HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None


def _require(kind: str, name: str, ask: Callable[..., object]) -> None:
    try:
        ask(name, timeout=REACH_SECONDS)
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:  # gated ones too
        raise UserError(
            f"the hub has no {kind} {name!r} that you may read, nor is there such a file or "
            "folder; check the name, or log in with `hf auth login`"
        ) from error
    except Exception as error:  # whichever HTTP library is below, it has its own exceptions
        raise UserError(
            f"there is no local {name!r}, and the hub cannot be reached for it "
            f"({type(error).__name__}); check name and network, or use a local one or a packaged "
            "one of `llm2comp data list`"
        ) from error
