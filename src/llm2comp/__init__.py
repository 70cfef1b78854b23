"""llm2comp turns a causal language model into a text encoder by training it to compress."""

from typing import TYPE_CHECKING, Any

from llm2comp import deprecated
from llm2comp.version import __version__

if TYPE_CHECKING:
    from llm2comp.api import (
        analyze,
        answer,
        capacity,
        encode,
        encode_file,
        encode_files,
        evaluate,
        export,
        fetch,
        generate,
        index,
        load,
        memory,
        mine,
        open_index,
        plan,
        push,
        read,
        report,
        search,
        study,
        train,
    )

__all__ = [
    "__version__",
    "analyze",
    "answer",
    "capacity",
    "encode",
    "encode_file",
    "encode_files",
    "evaluate",
    "export",
    "fetch",
    "generate",
    "index",
    "load",
    "memory",
    "mine",
    "open_index",
    "plan",
    "push",
    "read",
    "report",
    "search",
    "study",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public function when it is first used, because torch takes seconds to import."""
    if name in __all__:
        from llm2comp import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


deprecated.install()
