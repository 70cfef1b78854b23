"""The versions of the packages that make an encoder folder."""

import importlib.metadata
import platform

from llm2comp.version import __version__

PACKAGES = ("torch", "transformers", "peft", "sentence-transformers", "tokenizers")


def versions() -> dict[str, str]:
    """Return the versions of this package, of Python and of the packages that make an encoder."""
    return {
        "llm2comp": __version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }
