"""Texts that clients send as the ids of their tokens."""

from sentence_transformers import SentenceTransformer
from transformers import PreTrainedTokenizerBase


class UnknownTokensError(Exception):
    """Ids that are not those of a text: of another tokenizer, or with special tokens."""


def text_of(encoder: SentenceTransformer, ids: list[int]) -> str:
    """Return the text whose tokens have these ids.

    A client may have used the tokenizer of another model, for example that of OpenAI's. The
    embeddings would then be those of another text. So the text must have these tokens again.

    Args:
        encoder: any model.
        ids: without special tokens.

    Raises:
        UnknownTokensError: if the text would not have these tokens.
    """
    tokenizer = getattr(encoder, "tokenizer", None)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise UnknownTokensError("this model has no tokens")
    special = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    if special.isdisjoint(ids) and max(ids) < len(tokenizer):
        text = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        if tokenizer.encode(text, add_special_tokens=False) == ids:
            return text
    raise UnknownTokensError("the ids are not those of a text in the tokenizer of this model")
