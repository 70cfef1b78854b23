"""Backbones with a tokenizer of every kind, made by hand: a random Llama of 2 layers for each."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Tokenizer

WORDS = (
    "A compiler translates source code into instructions that a processor can run. The river "
    "rises in the mountains and reaches the sea after two hundred miles. Roman coins were found "
    "near the harbour; interest rates were left unchanged, as most economists had expected."
)
SPECIAL = ["<pad>", "<s>", "</s>"]
NAMED = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
Named = dict[str, Any]


def on_bytes(
    special: list[str] | None = None, *, ignore_merges: bool = False, regex: str = r"\p{L}+|\s+|\S"
) -> Tokenizer:
    """Return BPE on bytes, as GPT-2, Llama 3, Qwen and SmolLM2 have it."""
    backend = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(regex), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        [WORDS],
        trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=SPECIAL if special is None else special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return backend


def template(backend: Tokenizer, single: str) -> processors.TemplateProcessing:
    ids = [(name, backend.token_to_id(name)) for name in single.split() if name != "$A"]
    return processors.TemplateProcessing(single=single, pair=f"{single} $B", special_tokens=ids)


def _plain() -> tuple[Tokenizer, Named]:
    return on_bytes(), NAMED


def _without(*names: str) -> Callable[[], tuple[Tokenizer, Named]]:
    kept = {name: token for name, token in NAMED.items() if name not in names}
    return lambda: (on_bytes(sorted(kept.values())), kept)


def _adds(single: str) -> Callable[[], tuple[Tokenizer, Named]]:
    def make() -> tuple[Tokenizer, Named]:
        backend = on_bytes()
        backend.post_processor = template(backend, single)
        return backend, NAMED

    return make


def _llama3() -> tuple[Tokenizer, Named]:
    """Special tokens behind the vocabulary, and a post-processor of two steps."""
    backend = on_bytes([], ignore_merges=True)
    backend.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
    backend.add_tokens(["<tool_call>"])  # not special: it is text
    backend.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=True), template(backend, "<|begin_of_text|> $A")]
    )
    return backend, {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}


def _whole_pieces() -> tuple[Tokenizer, Named]:
    """A special token that `ignore_merges` finds as a piece of its own."""
    return on_bytes(ignore_merges=True, regex=r"\s+|\S+"), NAMED


def _normalized() -> tuple[Tokenizer, Named]:
    backend = on_bytes()
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    return backend, NAMED


def _qwen2() -> tuple[Tokenizer, Named]:
    """The tokenizer that transformers makes for every model of the type `qwen2`."""
    regex = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer.__getstate__()
    pattern = json.loads(regex)["pretokenizers"][0]["pattern"]["Regex"]
    backend = on_bytes([], regex=pattern)
    backend.normalizer = normalizers.NFC()
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    backend.add_tokens(["<tool_call>"])
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return backend, {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}


def _spm_bpe() -> tuple[Tokenizer, Named]:
    """As Llama 2: BPE on sentences with bytes for unknown characters, and BOS."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.train_from_iterator(
        [WORDS],
        trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False),
    )
    state = json.loads(backend.to_str())
    state["model"] |= {"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"}
    state["added_tokens"] = state["added_tokens"][:3]
    backend = Tokenizer.from_str(json.dumps(state))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.post_processor = template(backend, "<s> $A")
    return backend, {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


def _unigram() -> tuple[Tokenizer, Named]:
    """As T5: pieces of sentences, EOS behind, and added tokens behind the vocabulary."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.train_from_iterator(
        [WORDS],
        trainers.UnigramTrainer(
            vocab_size=150,
            special_tokens=["<pad>", "</s>", "<unk>"],
            unk_token="<unk>",
            show_progress=False,
        ),
    )
    backend.add_special_tokens(["<extra_id_0>", "<extra_id_1>"])
    backend.post_processor = template(backend, "$A </s>")
    return backend, {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>"}


def _wordpiece() -> tuple[Tokenizer, Named]:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    backend.train_from_iterator(
        [WORDS],
        trainers.WordPieceTrainer(vocab_size=150, special_tokens=special, show_progress=False),
    )
    backend.post_processor = template(backend, "[CLS] $A [SEP]")
    named = ("unk_token", "[UNK]"), ("pad_token", "[PAD]"), ("sep_token", "[SEP]")
    return backend, {"cls_token": "[CLS]", **dict(named)}


def _words() -> tuple[Tokenizer, Named]:
    """Whole words between spaces, of which a special token is one."""
    backend = Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.train_from_iterator(
        [WORDS], trainers.WordLevelTrainer(special_tokens=["<unk>", *SPECIAL], show_progress=False)
    )
    return backend, NAMED | {"unk_token": "<unk>"}


MADE: dict[str, Callable[[], tuple[Tokenizer, Named]]] = {
    "plain": _plain,
    "no pad": _without("pad_token"),
    "no eos": _without("eos_token"),
    "no bos": _without("bos_token"),
    "neither pad nor eos": _without("pad_token", "eos_token"),
    "none of them": _without("pad_token", "eos_token", "bos_token"),
    "adds BOS": _adds("<s> $A"),
    "adds EOS": _adds("$A </s>"),
    "adds both": _adds("<s> $A </s>"),
    "llama 3": _llama3,
    "whole pieces": _whole_pieces,
    "normalized": _normalized,
    "qwen2": _qwen2,
    "llama 2": _spm_bpe,
    "unigram": _unigram,
    "wordpiece": _wordpiece,
    "words": _words,
}
"""A tokenizer and its named special tokens, by what is notable about it."""


def make_backbone(
    folder: Path, kind: str, rows: int = 0, model_type: str = "llama", **config: Any
) -> Path:
    """Write a backbone with one of the tokenizers.

    Args:
        folder: to write.
        kind: a key of `MADE`.
        rows: of the token table beyond the tokenizer's; may be negative.
        model_type: in `config.json`, for which transformers may choose a class of tokenizers.
        config: more keys of `tokenizer_config.json`.
    """
    backend, named = MADE[kind]()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **named)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(
                model_type,
                vocab_size=len(tokenizer) + rows,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                initializer_range=0.2,
                pad_token_id=None,
            )
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name, more in (("tokenizer_config.json", config),):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | more))
    return folder
