"""An encoder of ours as a `MultiVectorEncoder` of sentence-transformers, of stock modules only."""

import json
from pathlib import Path

from sentence_transformers import MultiVectorEncoder, SentenceTransformer
from sentence_transformers.base.modules import Normalize
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sentence_transformer.modules import Pooling

from llm2comp.errors import UserError
from llm2comp.model.multi_vector.memory_vectors import memory_token_ids


def as_multi_vector(encoder: SentenceTransformer, name: str) -> MultiVectorEncoder:
    """Return a `MultiVectorEncoder` of the k memory vectors of an encoder.

    `MultiVectorMask` leaves out all tokens that have a name. Memory tokens have none, because they
    are in no vocabulary. Its other list, of ids to keep, would not hold for queries. `Pooling` then
    averages what is left, so one forward pass gives the embedding of the text too.

    Args:
        encoder: of ours, with several memory tokens. Its transformer becomes that of the result.
        name: of the encoder, for the message.

    Raises:
        UserError: if the encoder does not pool several memory tokens.
    """
    memory = memory_token_ids(encoder, name)
    tokenizer = encoder.tokenizer
    words = tokenizer.get_vocab()
    if any(words[word] in memory for word in words):
        raise UserError(f"{name} has memory tokens that are in its vocabulary")
    dimension = encoder.get_embedding_dimension()
    assert dimension is not None
    return MultiVectorEncoder(
        modules=[
            encoder[0],
            MultiVectorMask(
                sorted(words, key=words.__getitem__), skiplist_tasks=["query", "document"]
            ),
            Pooling(dimension, pooling_mode="mean"),
            Normalize(),
            Normalize(module_input_name="token_embeddings"),
        ],
        prompts={key: prompt or "" for key, prompt in encoder.prompts.items()},
        similarity_fn_name="maxsim",
    )


def is_multi_vector(folder: Path) -> bool:
    """Return whether sentence-transformers loads a folder as a `MultiVectorEncoder`."""
    try:
        content = json.loads((folder / "config_sentence_transformers.json").read_bytes())
    except (OSError, ValueError):  # not there or damaged, which loading reports
        return False
    return isinstance(content, dict) and content.get("model_type") == "MultiVectorEncoder"


def require_one_vector(folder: Path, name: str) -> None:
    """Check that a folder is not that of a `MultiVectorEncoder`.

    `SentenceTransformer` would load it without an error, and pool over all tokens.

    Raises:
        UserError: if it is.
    """
    if is_multi_vector(folder):
        raise UserError(
            f"{name} has several vectors per text; load it with MultiVectorEncoder of "
            "sentence-transformers, or name the encoder that it was made from"
        )
