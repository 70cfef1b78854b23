"""What stands around every text: tokens put there by the tokenizer's own post-processor.

So truncation cuts the text and never what is around it, and a folder needs no
code of ours to do the same.
"""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing


def surround(backend: Tokenizer, before: Sequence[int], after: Sequence[int]) -> None:
    """Put token ids in front of every text and behind it, in place."""
    ids = {"before": list(before), "after": list(after)}
    front, behind = ([name] if ids[name] else [] for name in ids)
    backend.post_processor = TemplateProcessing(
        single=[*front, "$A", *behind],
        pair=[*front, "$A", "$B", *behind],
        special_tokens=[
            {"id": name, "ids": ids[name], "tokens": [backend.id_to_token(i) for i in ids[name]]}
            for name in (*front, *behind)
        ],
    )
