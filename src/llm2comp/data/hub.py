"""Stream a dataset of the Hugging Face hub."""

from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import huggingface_hub
from huggingface_hub import HfApi, errors

from llm2comp.data.files import Numbered
from llm2comp.errors import UserError


def read(name: str, split: str) -> Iterator[Numbered]:
    """Yield the numbered rows of ``owner/name`` or ``owner/name:configuration``.

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
    except ValueError as error:  # what datasets raises for an unknown configuration or split
        message = " ".join(str(error).split())
        raise UserError(f"{name}, split {split}: {message[:200]}") from error
    except OSError as error:
        raise UserError(f"{name}: reading from the hub failed ({error})") from error


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
