"""Memory tokens: their embeddings, their place after every text, and the pooling over them."""

import torch
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, WordWeights
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from llm2comp.errors import UserError
from llm2comp.model.causal_lm.parts import token_table
from llm2comp.model.loading.tokenizer import (
    first_token,
    needed_first_token,
    padding_token,
    require_fast,
    set_template,
    without_special_tokens,
)
from llm2comp.model.prompt_format import DEFAULT_FORMAT, PromptFormat
from llm2comp.recipe_parts import Memory

FIRST_TOKEN = 1e-6
"""Weight of the token before a text where the text's own tokens are pooled."""


def memory_token_names(count: int) -> list[str]:
    """Return the names of the first `count` memory tokens."""
    return [f"<|memory_{i}|>" for i in range(count)]


def appended_token_names(prompt_format: PromptFormat, k: int) -> list[str]:
    """Return the names of the memory tokens after a text, which are the last in the token table."""
    names = memory_token_names(prompt_format.num_memory_embeddings(k))
    return names[len(names) - prompt_format.num_memory_tokens(k) :]


def add_memory_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    memory: Memory,
    seed: int,
    prompt_format: PromptFormat = DEFAULT_FORMAT,
    add_bos: bool | None = None,
) -> PreTrainedTokenizerFast:
    """Append memory embeddings to a model's token table, and make a tokenizer that uses them.

    Args:
        model: changed in place.
        tokenizer: not changed.
        memory: number and initialisation of the memory tokens.
        seed: of the random initialisation.
        prompt_format: what surrounds a text.
        add_bos: the recipe's `backbone.add_bos`.

    Returns:
        A tokenizer that puts BOS and the format's prompts before every text, and the format's
        prompt and the memory tokens after it. Its truncation shortens the text only. Its
        `bos_token_id` is the token before every text, or None if there is none. Whatever else the
        original puts around a text, such as EOS, is left out: memory tokens end a text. The memory
        tokens are in no vocabulary, so that no text has them and decoding skips them.

    Raises:
        UserError: if the tokenizer is not a fast one or has a larger vocabulary than the model, it
            has no token to begin a text with where one is needed, or `memory.init_text` has no
            tokens.
    """
    require_fast(tokenizer)
    table = token_table(model).weight.detach().float()
    count = prompt_format.num_memory_embeddings(memory.tokens)
    embeddings = _initial_embeddings(table, tokenizer, memory, count, seed)
    extended = extended_tokenizer(tokenizer, prompt_format, memory.tokens, len(table), add_bos)
    model.resize_token_embeddings(len(table) + count, mean_resizing=False)
    with torch.no_grad():
        token_table(model).weight[len(table) :] = embeddings.to(model.dtype)
    return extended


def _initial_embeddings(
    table: torch.Tensor,
    tokenizer: PreTrainedTokenizerBase,
    memory: Memory,
    count: int,
    seed: int,
) -> torch.Tensor:
    """Return `(count, hidden)`, all different, so that the tokens can specialise."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, table.shape[1], generator=generator) * table.std(0).cpu()
    if memory.init == "random":
        return table.mean(0).cpu() + noise
    ids = tokenizer(memory.init_text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise UserError(f"memory.init_text {memory.init_text!r} has no tokens")
    repeated = (ids * count)[len(ids) * count - count :]
    return table[repeated].cpu() + 0.02 * noise


def extended_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    prompt_format: PromptFormat,
    k: int,
    rows: int,
    add_bos: bool | None,
) -> PreTrainedTokenizerFast:
    """Return a tokenizer that adds memory tokens, the first of which has the id `rows`.

    Args:
        tokenizer: of the backbone; not changed.
        prompt_format: what surrounds a text.
        k: the recipe's number of memory tokens.
        rows: of the backbone's token table.
        add_bos: the recipe's `backbone.add_bos`.

    Raises:
        UserError: as `add_memory_tokens`.
    """
    backend = without_special_tokens(tokenizer.backend_tokenizer, rows)
    first = first_token(tokenizer, add_bos)
    if first is None and prompt_format.pooling == "text":
        first = needed_first_token(tokenizer)
    before, after = (
        backend.encode(prompt, add_special_tokens=False).ids
        for prompt in (prompt_format.before, prompt_format.after)
    )
    names = memory_token_names(prompt_format.num_memory_embeddings(k))
    memory = dict(enumerate(names, start=rows))
    appended = list(memory)[len(memory) - prompt_format.num_memory_tokens(k) :]
    set_template(
        backend, [*([] if first is None else [first]), *before], [*after, *appended], memory
    )
    named = {"eos_token": tokenizer.eos_token, "unk_token": tokenizer.unk_token}
    known = {name: token for name, token in named.items() if token in backend.get_vocab()}
    if first is not None:
        known["bos_token"] = backend.id_to_token(first)
    # The generic class keeps the post-processor; model-specific classes replace it when they load.
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        padding_side="right",
        truncation_side="right",
        # transformers makes the tokens below added tokens again. This keeps them out of texts.
        split_special_tokens=True,
        pad_token=padding_token(tokenizer, backend, rows),
        **known,
    )


def pooling_modules(
    tokenizer: PreTrainedTokenizerBase, prompt_format: PromptFormat, k: int, rows: int, hidden: int
) -> list[nn.Module]:
    """Return stock modules that make a unit embedding from a text's token outputs.

    `WordWeights` gives memory tokens the weight 1 and all others 0 (paper: the embedding is the
    mean of the k memory outputs), or, with `pooling="text"`, all tokens of the text 1.
    `Pooling(mean)` then divides by the sum of the weights. With `pooling="text"` the first token
    has the weight `FIRST_TOKEN`: it is the embedding of an empty text, and in all others it is lost
    in rounding.

    Args:
        tokenizer: as `add_memory_tokens` returns it.
        prompt_format: which outputs are averaged.
        k: number of memory tokens in the recipe.
        rows: of the token table, with the memory embeddings.
        hidden: dimension of an output.
    """
    # WordWeights looks weights up by name. The names are ids, because two tokens of a vocabulary
    # may differ in case only, and it would take one for the other.
    names = memory_token_names(prompt_format.num_memory_embeddings(k))
    vocabulary = [*map(str, range(rows - len(names))), *names]
    if prompt_format.pooling == "memory":
        weights = dict.fromkeys(appended_token_names(prompt_format, k), 1.0)
        unknown_word_weight = 0.0
    else:
        weights = {str(tokenizer.bos_token_id): FIRST_TOKEN}
        unknown_word_weight = 1.0
    return [
        WordWeights(vocabulary, weights, unknown_word_weight=unknown_word_weight),
        Pooling(hidden, pooling_mode="mean"),
        Normalize(),
    ]
