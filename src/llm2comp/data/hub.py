"""Datasets and models of the Hugging Face hub: stream rows, and check that a name exists."""

from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import huggingface_hub
from huggingface_hub import HfApi, errors

from llm2comp.data.files import NumberedRow
from llm2comp.errors import UserError, one_line

REACH_SECONDS = 10.0
"""How long the hub may take to answer."""


def read(name: str, split: str) -> Iterator[NumberedRow]:
    """Yield the rows of a dataset with their numbers, without downloading it first.

    Args:
        name: `owner/name` or `owner/name:configuration`.
        split: the split of the dataset.

    Raises:
        UserError: if the hub cannot be reached, or has no such dataset, configuration or split.
    """
    repository, _, configuration = name.partition(":")
    require_dataset(repository)
    try:
        stream = datasets.load_dataset(
            repository, configuration or None, split=split, streaming=True
        )
        yield from enumerate(stream, start=1)
    except ValueError as error:  # datasets raises it for an unknown configuration or split
        raise UserError(f"{name}, split {split}: {one_line(error)}") from error
    except OSError as error:
        raise UserError(f"{name}: reading from the hub failed ({one_line(error)})") from error


def require_model(name: str) -> None:
    """Check that a model is in the hub's local cache, or that the hub has it.

    Raises:
        UserError: if neither is true.
    """
    if cached_model(name) is None:
        _require("model", name, HfApi().model_info)


def require_dataset(name: str) -> None:
    """Check that the hub has a dataset.

    Raises:
        UserError: if it does not, or cannot be reached.
    """
    _require("dataset", name, HfApi().dataset_info)


def cached_model(name: str) -> Path | None:
    """Return the folder of a model in the hub's local cache, or None if it is not there."""
    try:
        config = huggingface_hub.try_to_load_from_cache(name, "config.json")
    except errors.HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None


def _require(kind: str, name: str, request: Callable[..., object]) -> None:
    try:
        request(name, timeout=REACH_SECONDS)
    # The hub answers in the same way for gated repositories.
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise UserError(
            f"the hub has no {kind} {name!r} that you may read, and there is no such file or "
            "folder; check the name, or log in with `hf auth login`"
        ) from error
    except Exception as error:  # the HTTP library below has exceptions of its own
        raise UserError(
            f"there is no local {name!r}, and the hub cannot be reached to look for it "
            f"({type(error).__name__}); check the name and the network, or use a local {kind} or "
            "one that `llm2comp data list` shows"
        ) from error
