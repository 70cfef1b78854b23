"""Modules of ours within a sentence-transformers model, which therefore cannot be saved."""

from typing import Any, NoReturn

from sentence_transformers.base.modules.module import Module

from llm2comp.errors import UserError


class InMemory(Module):
    """A module that refuses to be saved: the folder would not load without this package."""

    def save(self, output_path: str, *_: Any, **__: Any) -> NoReturn:
        """Refuse.

        Raises:
            UserError: always.
        """
        raise UserError(f"{output_path}: {type(self).__name__} works in memory only, not saved")
