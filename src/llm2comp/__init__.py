"""llm2comp turns a causal language model into a text encoder by training it to compress."""

from pathlib import Path

__version__ = "0.1.0"
__all__ = ["__version__", "fetch"]


def fetch(name: str) -> Path:
    """Return the folder of a released encoder, building it once in the user's cache.

    Example:
        >>> from sentence_transformers import SentenceTransformer
        >>> model = SentenceTransformer(str(llm2comp.fetch("smollm2-135m-llm2comp")))

    Raises:
        UserError: if there is no release of that name.
    """
    from llm2comp import release  # here, because `import llm2comp` must not load torch

    return release.fetch(name)
