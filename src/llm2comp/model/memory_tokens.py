"""Memory tokens: their rows, their place behind every text, and the pooling over them."""

import torch
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, WordWeights
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from llm2comp.errors import UserError
from llm2comp.model.backbone import token_table
from llm2comp.model.prompt_format import COMPRESSION, PromptFormat, set_template
from llm2comp.recipe import Memory


def memory_tokens(count: int) -> list[str]:
    """Return the names of so many memory tokens."""
    return [f"<|memory_{i}|>" for i in range(count)]


def read_tokens(prompt_format: PromptFormat, k: int) -> list[str]:
    """Return the names of the memory tokens behind a text: the last k of those there are."""
    names = memory_tokens(prompt_format.num_memory_embeddings(k))
    return names[len(names) - prompt_format.tokens(k) :]


def add_memory_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    memory: Memory,
    seed: int,
    prompt_format: PromptFormat = COMPRESSION,
) -> PreTrainedTokenizerFast:
    """Append the memory rows to the model's embedding table, in place, and extend the tokenizer.

    Returns:
        A tokenizer that puts ``BOS`` and the format's prompts around every text,
        and the memory tokens behind it; its truncation cuts nothing but the text.

    Raises:
        UserError: if the tokenizer is not a fast one, or the text for
            ``init: text`` has no tokens.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"tokenizer of {tokenizer.name_or_path} has no fast version; llm2comp needs one"
        )
    table = token_table(model).weight.detach().float()
    rows = _initial_rows(
        table, tokenizer, memory, prompt_format.num_memory_embeddings(memory.tokens), seed
    )
    extended = _with_memory(tokenizer, prompt_format, memory.tokens, first_id=len(table))
    model.resize_token_embeddings(len(table) + len(rows), mean_resizing=False)
    with torch.no_grad():
        token_table(model).weight[len(table) :] = rows.to(model.dtype)
    return extended


def _initial_rows(
    table: torch.Tensor,
    tokenizer: PreTrainedTokenizerBase,
    memory: Memory,
    count: int,
    seed: int,
) -> torch.Tensor:
    """Return ``(count, hidden)`` rows; never alike, so that the tokens can specialise."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, table.shape[1], generator=generator) * table.std(0).cpu()
    if memory.init == "random":
        return table.mean(0).cpu() + noise
    ids = tokenizer(memory.init_text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise UserError(f"memory.init_text {memory.init_text!r} has no tokens")
    repeated = (ids * count)[len(ids) * count - count :]
    return table[repeated].cpu() + 0.02 * noise


def _with_memory(
    tokenizer: PreTrainedTokenizerBase, prompt_format: PromptFormat, k: int, first_id: int
) -> PreTrainedTokenizerFast:
    backend = Tokenizer.from_str(
        tokenizer.backend_tokenizer.to_str()
    )  # the caller's stays as it is
    # Some embedding tables are padded beyond the tokenizer: fill up, so that ids meet rows.
    gap = first_id - len(tokenizer)
    if gap < 0:
        raise UserError(
            f"tokenizer of {tokenizer.name_or_path} has {-gap} more tokens than the model has rows"
        )
    backend.add_special_tokens([f"<|unused_row_{i}|>" for i in range(gap)])
    backend.add_special_tokens(memory_tokens(prompt_format.num_memory_embeddings(k)))
    known = {
        name: getattr(tokenizer, name)
        for name in ("bos_token", "eos_token", "unk_token", "pad_token")
        if getattr(tokenizer, name) is not None
    }
    if prompt_format.pooling == "text" and "eos_token" in known:
        known.setdefault("bos_token", known["eos_token"])  # an empty text needs some token
    known.setdefault("pad_token", known.get("eos_token", backend.id_to_token(first_id)))
    ids = backend.get_vocab()
    bos = [ids[known["bos_token"]]] if "bos_token" in known else []
    before, after = (
        backend.encode(prompt, add_special_tokens=False).ids
        for prompt in (prompt_format.before, prompt_format.after)
    )
    set_template(
        backend, [*bos, *before], [*after, *(ids[token] for token in read_tokens(prompt_format, k))]
    )
    # The generic class keeps the post-processor as it is; model-specific ones rebuild it on load.
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        padding_side="right",
        truncation_side="right",
        split_special_tokens=True,  # a text that spells a memory token must not become one
        **known,
    )


def pooling(
    tokenizer: PreTrainedTokenizerBase, prompt_format: PromptFormat, k: int, hidden: int
) -> list[nn.Module]:
    """Return stock modules that average a text's outputs to unit length, as its prompt format says.

    ``WordWeights`` weighs memory tokens 1 and all else 0 (paper: the embedding
    is the mean of the k memory outputs), or the text's own tokens 1 and BOS 0;
    ``Pooling(mean)`` divides by the sum of the weights.
    """
    vocabulary = [str(tokenizer.convert_ids_to_tokens(i)) for i in range(len(tokenizer))]
    if prompt_format.pooling == "memory":
        weights, others = dict.fromkeys(read_tokens(prompt_format, k), 1.0), 0.0
    else:
        weights, others = {str(tokenizer.bos_token): 0.0}, 1.0
    return [
        WordWeights(vocabulary, weights, unknown_word_weight=others),
        Pooling(hidden, pooling_mode="mean"),
        Normalize(),
    ]
