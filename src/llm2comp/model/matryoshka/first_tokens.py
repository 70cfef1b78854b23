"""An encoder that appends only the first of its memory tokens to a text."""

import json
from collections.abc import Collection
from pathlib import Path

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import WordWeights
from tokenizers import Tokenizer

from llm2comp.errors import UserError
from llm2comp.model.folder.reference import Reference, embed_alone
from llm2comp.model.lineage import Lineage
from llm2comp.model.loading.tokenizer import FILE
from llm2comp.model.modules import MergeMemory, memory_weights


def memory_tokens_of(encoder: SentenceTransformer) -> int | None:
    """Return how many memory tokens an encoder pools; None if it pools otherwise."""
    weights = memory_weights(encoder)
    return None if weights is None else len(pooled_ids(weights))


def keep_memory_tokens(encoder: SentenceTransformer, count: int, name: str) -> None:
    """Let an encoder append and pool only its first memory tokens, in place.

    The later tokens are not in the batch, so nothing attends to them, and a text takes fewer
    positions. As many tokens of a text are read as before. All modules stay stock ones, so the
    encoder can be saved.

    Args:
        encoder: pools over memory tokens, and does not merge them.
        count: memory tokens to keep.
        name: of the encoder, for the message.

    Raises:
        UserError: if it has fewer, or does not pool over memory tokens.
    """
    weights = memory_weights(encoder)
    if weights is None:
        raise UserError(f"{name} does not pool over memory tokens, so there are none to choose")
    assert not any(isinstance(module, MergeMemory) for module in encoder)
    ids = pooled_ids(weights)
    if not 1 <= count <= len(ids):
        raise UserError(f"memory_tokens is {count}; {name} has 1 to {len(ids)}")
    dropped = ids[count:]
    backend = encoder.tokenizer.backend_tokenizer
    backend.post_processor = _without(backend, dropped).post_processor
    if encoder.max_seq_length is not None:
        encoder.max_seq_length -= len(dropped)
    names = {weights.vocab[one] for one in ids[:count]}
    fewer = WordWeights(
        weights.vocab,
        {word: weight for word, weight in weights.word_weights.items() if word in names},
        unknown_word_weight=weights.unknown_word_weight,
    ).to(encoder.device)
    fewer.requires_grad_(False)
    fewer.train(encoder.training)
    for place, module in encoder.named_children():
        if module is weights:
            setattr(encoder, place, fewer)


def plain_tokenizer(encoder: SentenceTransformer, source: Path) -> Tokenizer:
    """Return the tokenizer of an encoder's folder, with the memory tokens that the encoder appends.

    transformers makes special tokens added tokens again when it saves, which other programs find in
    texts. So a folder gets the tokenizer that its source has.

    Args:
        encoder: of the folder, maybe as `keep_memory_tokens` left it.
        source: the folder.
    """
    plain, kept = Tokenizer.from_file(str(source / FILE)), set(encoder.tokenizer("")["input_ids"])
    return _without(plain, [one for one in plain.encode("").ids if one not in kept])


def lineage_with(lineage: Lineage, encoder: SentenceTransformer, count: int | None) -> Lineage:
    """Return the lineage of an export of an encoder that appends only its first memory tokens.

    Args:
        lineage: of the encoder as it was.
        encoder: in float32, as `keep_memory_tokens` left it.
        count: memory tokens that were kept; None returns the lineage as it is.
    """
    if count is None:
        return lineage
    embeddings = Reference.of(embed_alone(encoder))
    return lineage.model_copy(update={"kept_tokens": count, "reference": embeddings})


def pooled_ids(weights: WordWeights) -> list[int]:
    """Return the ids of the memory tokens that are pooled, in the order of their places."""
    ids: list[int] = weights.emb_layer.weight.flatten().nonzero().flatten().tolist()
    return ids


def _without(backend: Tokenizer, dropped: Collection[int]) -> Tokenizer:
    """Return a copy of a tokenizer whose template puts fewer tokens around a text."""
    state = json.loads(backend.to_str())
    processor = state["post_processor"] or {}
    for step in processor.get("processors", [processor]):
        for part in step.get("special_tokens", {}).values():
            kept = [place for place, one in enumerate(part["ids"]) if one not in dropped]
            part |= {key: [part[key][place] for place in kept] for key in ("ids", "tokens")}
    return Tokenizer.from_str(json.dumps(state))
