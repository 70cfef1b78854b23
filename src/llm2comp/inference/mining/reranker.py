"""Load a reranker: a cross-encoder, which reads a query and a text together and gives a score."""

import json
from pathlib import Path

from sentence_transformers import CrossEncoder
from transformers import AutoConfig

from llm2comp.errors import UserError
from llm2comp.inference.load import one_line_errors, trusted
from llm2comp.model.released import resolve_encoder
from llm2comp.utils.finite import require_finite

HEAD = "ForSequenceClassification"
"""End of the name of an architecture that gives scores."""
KIND = "config_sentence_transformers.json"
"""File in which sentence-transformers says what kind of model a folder holds."""


def load_reranker(name: str) -> CrossEncoder:
    """Load a cross-encoder.

    Args:
        name: folder or hub id.

    Raises:
        UserError: if it cannot be loaded, or does not give one score. Any other model would be
            loaded with a new, random head.
    """
    with one_line_errors(name):
        source = resolve_encoder(name)
        code = trusted()
        if not gives_scores(source, code=code):
            raise UserError(
                f"reranker {name!r} is no cross-encoder: it has no head that scores a query and a "
                "text; name a model for sequence classification with one label"
            )
        reranker: CrossEncoder = CrossEncoder(source, trust_remote_code=code)
        if reranker.num_labels != 1:
            raise UserError(
                f"reranker {name!r} gives {reranker.num_labels} scores for a pair; name one that "
                "gives one"
            )
        require_finite(reranker, f"reranker {name!r}", "take another")
    return reranker


def is_reranker(name: str) -> bool:
    """Return whether a model scores a query and a text together.

    Raises:
        UserError: if there is no such model.
    """
    with one_line_errors(name):
        return gives_scores(resolve_encoder(name), code=trusted())


def gives_scores(source: str, *, code: bool) -> bool:
    """Return whether a folder or a model of the hub has a head that gives scores."""
    kind = Path(source) / KIND
    if kind.is_file():
        return bool(json.loads(kind.read_bytes()).get("model_type") == "CrossEncoder")
    config = AutoConfig.from_pretrained(source, trust_remote_code=code)
    return any(name.endswith(HEAD) for name in config.architectures or ())
