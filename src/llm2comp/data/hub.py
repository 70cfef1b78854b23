"""Stream a dataset of the Hugging Face hub."""

from collections.abc import Iterator

import datasets

from llm2comp.data.local import Numbered
from llm2comp.errors import UserError
from llm2comp.hub import require_dataset


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
