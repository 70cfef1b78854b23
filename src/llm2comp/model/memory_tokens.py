"""Memory tokens: their embeddings, their place after every text, and the pooling over them."""

import torch
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, WordWeights
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from llm2comp.errors import UserError
from llm2comp.model.causal_lm.parts import token_table
from llm2comp.model.prompt_format import DEFAULT_FORMAT, PromptFormat, set_template
from llm2comp.recipe import Memory


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
) -> PreTrainedTokenizerFast:
    """Append memory embeddings to a model's token table, and memory tokens to its tokenizer.

    Args:
        model: changed in place.
        tokenizer: not changed.
        memory: number and initialisation of the memory tokens.
        seed: of the random initialisation.
        prompt_format: what surrounds a text.

    Returns:
        A tokenizer that puts BOS and the format's prompts around every text, and the memory tokens
        after it. Its truncation shortens the text only.

    Raises:
        UserError: if the tokenizer is not a fast one or has more tokens than the model, or
            `memory.init_text` has no tokens.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"tokenizer of {tokenizer.name_or_path} has no fast version; llm2comp needs one"
        )
    table = token_table(model).weight.detach().float()
    count = prompt_format.num_memory_embeddings(memory.tokens)
    embeddings = _initial_embeddings(table, tokenizer, memory, count, seed)
    extended = _extended_tokenizer(tokenizer, prompt_format, memory.tokens, first_id=len(table))
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


def _extended_tokenizer(
    tokenizer: PreTrainedTokenizerBase, prompt_format: PromptFormat, k: int, first_id: int
) -> PreTrainedTokenizerFast:
    """Return a copy of a tokenizer that adds memory tokens, the first with the id `first_id`."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    # Some models have more rows than tokens. Add tokens for them, so that the ids of the memory
    # tokens are those of their rows.
    gap = first_id - len(tokenizer)
    if gap < 0:
        raise UserError(
            f"tokenizer of {tokenizer.name_or_path} has {-gap} more tokens than the model has "
            "embeddings; give the tokenizer that belongs to the model"
        )
    backend.add_special_tokens([f"<|unused_row_{i}|>" for i in range(gap)])
    backend.add_special_tokens(memory_token_names(prompt_format.num_memory_embeddings(k)))
    known = {
        name: getattr(tokenizer, name)
        for name in ("bos_token", "eos_token", "unk_token", "pad_token")
        if getattr(tokenizer, name) is not None
    }
    if prompt_format.pooling == "text" and "eos_token" in known:
        known.setdefault("bos_token", known["eos_token"])  # an empty text needs a token
    known.setdefault("pad_token", known.get("eos_token", backend.id_to_token(first_id)))
    ids = backend.get_vocab()
    bos = [ids[known["bos_token"]]] if "bos_token" in known else []
    before, after = (
        backend.encode(prompt, add_special_tokens=False).ids
        for prompt in (prompt_format.before, prompt_format.after)
    )
    set_template(
        backend,
        [*bos, *before],
        [*after, *(ids[token] for token in appended_token_names(prompt_format, k))],
    )
    # The generic class keeps the post-processor; model-specific classes replace it when they load.
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        padding_side="right",
        truncation_side="right",
        split_special_tokens=True,  # "<|memory_0|>" in a text stays text
        **known,
    )


def pooling_modules(
    tokenizer: PreTrainedTokenizerBase, prompt_format: PromptFormat, k: int, hidden: int
) -> list[nn.Module]:
    """Return stock modules that make a unit embedding from a text's token outputs.

    `WordWeights` gives memory tokens the weight 1 and all others 0 (paper: the embedding is the
    mean of the k memory outputs), or, with `pooling="text"`, BOS 0 and all others 1.
    `Pooling(mean)` then divides by the sum of the weights.

    Args:
        tokenizer: as `add_memory_tokens` returns it.
        prompt_format: which outputs are averaged.
        k: number of memory tokens in the recipe.
        hidden: dimension of an output.
    """
    vocabulary = [str(tokenizer.convert_ids_to_tokens(i)) for i in range(len(tokenizer))]
    if prompt_format.pooling == "memory":
        weights = dict.fromkeys(appended_token_names(prompt_format, k), 1.0)
        unknown_word_weight = 0.0
    else:
        weights = {str(tokenizer.bos_token): 0.0}
        unknown_word_weight = 1.0
    return [
        WordWeights(vocabulary, weights, unknown_word_weight=unknown_word_weight),
        Pooling(hidden, pooling_mode="mean"),
        Normalize(),
    ]
