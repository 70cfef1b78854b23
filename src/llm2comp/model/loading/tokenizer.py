"""Tokenizers that put fixed tokens around a text, and for which a text is never anything but text.

A tokenizer matches its added tokens wherever they are written, so `</s>` in a web page would become
the end of the text. transformers has a switch against this (`split_special_tokens`), but
`tokenizer.json` does not keep it. Here special tokens are entries of the vocabulary that no text
leads to. They are not added tokens, so every program that reads `tokenizer.json` gives the same
ids.
"""

import json
import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.processors import ByteLevel, PostProcessor, TemplateProcessing
from tokenizers.processors import Sequence as Processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from llm2comp.errors import UserError

FILE = "tokenizer.json"
PADDING = "<|padding|>"
PROBES = (
    "The river rises in the mountains.",
    "  Two  spaces,\ttabs\nand\r\n\nlines ",
    "1234567 + 3.14 = x_y(z); don't",
    "Ünïcode, 東京, \U0001f40b, ﬁ, e\u0301",
    "<s></s><|endoftext|>[SEP]<pad>",
)
"""Texts on which tokenizers are compared. They differ where pre-tokenizers and normalizers do."""


def load_tokenizer(source: Path, **options: Any) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a backbone.

    The class that `tokenizer_config.json` names may build a tokenizer of its own from the
    vocabulary, for example one on sentences where `tokenizer.json` has one on bytes. If the ids
    differ, `tokenizer.json` counts, because it is what the model came with.

    Args:
        source: local folder.
        options: further arguments of `from_pretrained`.

    Raises:
        OSError: if there is none.
        ValueError: if it cannot be read.
    """
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, **options)
    # transformers 5 has one class for every tokenizer.json that no other class rebuilds.
    if type(tokenizer) is PreTrainedTokenizerFast or not (source / FILE).is_file():
        return tokenizer
    plain: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(source, **options)
    return tokenizer if read_alike(tokenizer, plain) else plain


def read_alike(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Return whether two tokenizers give the same ids for `PROBES`, without special tokens."""
    return _ids_of_probes(one) == _ids_of_probes(other)


def _ids_of_probes(tokenizer: PreTrainedTokenizerBase) -> list[list[int]] | None:
    """Return the ids of each text, or None if the tokenizer cannot read one."""
    try:
        encoded = tokenizer(list(PROBES), add_special_tokens=False, split_special_tokens=True)
    except Exception:  # the tokenizers library has no class of its own
        return None
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def require_fast(tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that a tokenizer is one of the `tokenizers` library.

    Raises:
        UserError: if it is written in Python.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"tokenizer of {tokenizer.name_or_path} ({type(tokenizer).__name__}) has no fast "
            f"version, which llm2comp needs; put a {FILE} into the model's folder, or take another "
            "backbone"
        )


def first_token(tokenizer: PreTrainedTokenizerBase, add_bos: bool | None) -> int | None:
    """Return the id of the token before every text, or None if there is none.

    Args:
        tokenizer: a fast tokenizer, as it was loaded.
        add_bos: None for the token that the tokenizer itself puts there; true for BOS, if the
            tokenizer has one; false for none.

    Raises:
        UserError: if the tokenizer itself puts several tokens there.
    """
    if add_bos is not None:
        bos: int | None = tokenizer.bos_token_id if add_bos else None
        return bos
    encoding = tokenizer(PROBES[0]).encodings
    assert encoding is not None
    pairs = zip(encoding[0].ids, encoding[0].sequence_ids, strict=True)
    own = [token for token, _ in takewhile(lambda pair: pair[1] is None, pairs)]
    if len(own) > 1:
        raise UserError(
            f"tokenizer of {tokenizer.name_or_path} puts {len(own)} tokens before every text; "
            "llm2comp puts one or none: set backbone.add_bos to true or false"
        )
    return own[0] if own else None


def needed_first_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of BOS or, in models without one, of EOS, which separates documents.

    Raises:
        UserError: if the tokenizer has neither.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise UserError(
        f"tokenizer of {tokenizer.name_or_path} has neither BOS nor EOS, and an empty text would "
        "have no token; choose an objective with memory tokens, or a baseline with a prompt"
    )


def padding_token(tokenizer: PreTrainedTokenizerBase, backend: Tokenizer, rows: int) -> str:
    """Return the token to pad with: one that the model has a row for and that no text has.

    It is the tokenizer's own, else EOS, BOS, or any other special token. If there is none, it is a
    new one for a row without a token. If there is no such row, it is the last token of the
    vocabulary, which is the rarest. What a padding position holds does not change an embedding.

    Args:
        tokenizer: as it was loaded.
        backend: as `without_special_tokens` returns it.
        rows: of the model's token table.
    """
    special = sorted((i, t.content) for i, t in tokenizer.added_tokens_decoder.items() if t.special)
    names = [tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token]
    for name in (*names, *(name for _, name in special)):
        if name is not None and backend.token_to_id(name) is not None:
            return str(name)
    if backend.get_vocab_size() < rows:
        return PADDING  # transformers gives it the next free id
    return str(backend.id_to_token(max(backend.get_vocab().values())))


def without_special_tokens(backend: Tokenizer, rows: int, *, cut: bool = True) -> Tokenizer:
    """Return a copy of a tokenizer for which no text has a special token.

    Special tokens become entries of the vocabulary, with their ids. Where the vocabulary alone
    would make such an entry from a text, as with Unigram, the text is cut before its second
    character. An entry of one character is left as it is. Added tokens that are not special, such
    as runs of spaces, are text and stay. Added tokens without a row in the model's table are
    removed, and so are truncation and padding.

    Args:
        backend: not changed.
        rows: of the model's token table.
        cut: whether to cut texts that spell a special token. A tokenizer that was made here cuts
            them already, and may pad with a token that is text.

    Raises:
        UserError: if the vocabulary without added tokens is larger than the table.
    """
    state = json.loads(backend.to_str()) | {"truncation": None, "padding": None}
    added = [token for token in state["added_tokens"] if token["id"] < rows]
    state["added_tokens"] = [token for token in added if not token["special"]]
    state["model"]["vocab"] = _with_entries(state["model"]["vocab"], added)
    largest = max(backend.get_vocab(with_added_tokens=False).values(), default=-1)
    if largest >= rows:
        raise UserError(
            f"the tokenizer's vocabulary has ids up to {largest}, and the model has {rows} token "
            "embeddings; give the tokenizer that belongs to the model"
        )
    plain = Tokenizer.from_str(json.dumps(state))
    return _cut_at(plain, [token for token in added if cut and token["special"]])


def with_special_token(backend: Tokenizer, name: str, token: int) -> Tokenizer:
    """Return a copy of a tokenizer with one more special token, which no text has.

    Args:
        backend: as `without_special_tokens` returns it.
        name: of the token.
        token: its id.
    """
    state, added = json.loads(backend.to_str()), [{"content": name, "id": token}]
    state["model"]["vocab"] = _with_entries(state["model"]["vocab"], added)
    return _cut_at(Tokenizer.from_str(json.dumps(state)), added)


def _cut_at(plain: Tokenizer, special: list[dict[str, Any]]) -> Tokenizer:
    """Let a tokenizer cut texts that spell a special token, and return it."""
    cuts = [
        token["content"] for token in special if len(token["content"]) > 1 and _reads(plain, token)
    ]
    if cuts:
        pattern = "|".join(f"{re.escape(cut[0])}(?={re.escape(cut[1:])})" for cut in cuts)
        cutter = pre_tokenizers.Split(Regex(pattern), "isolated")
        before = [] if plain.pre_tokenizer is None else [plain.pre_tokenizer]
        plain.pre_tokenizer = pre_tokenizers.Sequence([*before, cutter])
    return plain


def set_template(
    backend: Tokenizer,
    before: Sequence[int],
    after: Sequence[int],
    names: Mapping[int, str] | None = None,
) -> None:
    """Let a tokenizer put token ids before and after every text, and nothing else.

    Its post-processor does this, so truncation shortens the text only, and an encoder folder needs
    no code of this package. A step that trims the offsets of byte-level tokens is kept.

    Args:
        backend: changed in place.
        before: token ids before the text.
        after: token ids after the text.
        names: of ids that are not in the vocabulary.
    """
    ids = {"before": list(before), "after": list(after)}
    front, behind = ([name] if ids[name] else [] for name in ids)
    known = names or {}
    template = TemplateProcessing(
        single=[*front, "$A", *behind],
        pair=[*front, "$A", "$B", *behind],
        special_tokens=[
            {
                "id": name,
                "ids": ids[name],
                "tokens": [known.get(i) or backend.id_to_token(i) for i in ids[name]],
            }
            for name in (*front, *behind)
        ],
    )
    trimming = _offset_trimming(backend.post_processor)
    backend.post_processor = Processors([*trimming, template]) if trimming else template


def _with_entries(vocabulary: Any, added: list[dict[str, Any]]) -> Any:
    """Return a model's vocabulary with an entry for each added token, at the token's id.

    The ids of added tokens in `tokenizer.json` are not read: a token has the id of its entry in the
    vocabulary or, without an entry, the next one that is free.
    """
    if isinstance(vocabulary, dict):
        return {token["content"]: token["id"] for token in added} | vocabulary
    names = {token["id"]: token["content"] for token in added}
    # Unigram: pieces and their scores in the order of ids. The lowest score changes no other.
    lowest = min(score for _, score in vocabulary)
    more = range(len(vocabulary), max(names, default=-1) + 1)
    return [*vocabulary, *([names.get(i, f"<|unused_row_{i}|>"), lowest] for i in more)]


def _reads(backend: Tokenizer, token: dict[str, Any]) -> bool:
    """Return whether a text with a token's name has the token's id, within other text or alone."""
    name = token["content"]
    contexts = (name, f"a{name}b", f"a {name} b", f"a\n{name}\nb")
    return any(
        token["id"] in encoding.ids
        for encoding in backend.encode_batch(list(contexts), add_special_tokens=False)
    )


def _offset_trimming(processor: PostProcessor | None) -> list[PostProcessor]:
    """Return the byte-level steps of a post-processor, which change offsets and not ids."""
    if processor is None:
        return []
    state = json.loads(processor.__getstate__())
    steps = state["processors"] if state["type"] == "Sequence" else [state]
    return [
        ByteLevel(trim_offsets=step["trim_offsets"], add_prefix_space=step["add_prefix_space"])
        for step in steps
        if step["type"] == "ByteLevel"
    ]
