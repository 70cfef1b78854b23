"""Stream a dataset of the Hugging Face hub."""

from collections.abc import Iterator

import datasets
import huggingface_hub
from huggingface_hub import errors

from llm2comp.data.local import Numbered
from llm2comp.errors import UserError

REACH_SECONDS = 10.0


def read(name: str, split: str) -> Iterator[Numbered]:
    """Yield the numbered rows of ``owner/name`` or ``owner/name:configuration``.

    Raises:
        UserError: if the hub cannot be reached, or has no such dataset, configuration or split.
    """
    repository, _, configuration = name.partition(":")
    _reach(repository)
    try:
        stream = datasets.load_dataset(
            repository, configuration or None, split=split, streaming=True
        )
        yield from enumerate(stream, start=1)
    except ValueError as error:  # what datasets raises for an unknown configuration or split
        message = " ".join(str(error).split())
        raise UserError(f"{name}, split {split}: {message[:200]}") from error
    except OSError as error:
        raise _unreachable(name, error) from error


def _reach(repository: str) -> None:
    """Fail at once, where streaming would try for minutes before it gives up."""
    try:
        huggingface_hub.HfApi().dataset_info(repository, timeout=REACH_SECONDS)
    except errors.RepositoryNotFoundError as error:  # gated datasets too
        raise UserError(
            f"the hub has no dataset {repository!r} that you may read, nor is there such a file; "
            "check the name, or log in with `hf auth login`"
        ) from error
    except Exception as error:  # whichever HTTP library is below, it has its own exceptions
        raise _unreachable(repository, error) from error


def _unreachable(name: str, error: Exception) -> UserError:
    return UserError(
        f"the hub cannot be reached for {name} ({type(error).__name__}); check the network, or use "
        "a local file or a packaged source of `llm2comp data list`, such as boolq-passages"
    )
