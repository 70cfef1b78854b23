"""Texts that need no network: sentences of few words, which a model soon learns to predict."""

import json
import random
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

WORDS = """\
baker doctor farmer pilot painter lawyer teacher singer sailor miner potter weaver judge clerk guard
repaired carried sold found painted measured borrowed counted cleaned moved lifted opened collected
lamp boat clock table basket mirror letter wheel bottle carpet ladder kettle piano drawer engine
harbour market station library garden valley museum bakery castle village forest hospital school
Monday Tuesday Wednesday Thursday Friday Saturday Sunday
"""
NOUNS, VERBS, THINGS, PLACES, DAYS = (line.split() for line in WORDS.splitlines())


def sentence(generator: random.Random) -> str:
    """Return a sentence of ten words."""
    noun, verb, thing, place, day = map(generator.choice, (NOUNS, VERBS, THINGS, PLACES, DAYS))
    return f"On {day} the {noun} {verb} a {thing} near the {place}."


def passage(generator: random.Random, words: int) -> str:
    """Return sentences with so many words or a few more."""
    return " ".join(sentence(generator) for _ in range(-(-words // 10)))


def write_passages(file: Path, count: int, words: int, seed: int) -> None:
    """Write so many texts, one per line.

    Args:
        file: to write.
        count: texts.
        words: of a text.
        seed: the same seed gives the same texts.
    """
    generator = random.Random(seed)
    lines = [passage(generator, words) for _ in range(count)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_pairs(file: Path, count: int, words: int, seed: int, *, scored: bool) -> None:
    """Write so many pairs, one JSON object per line.

    A positive begins with the sentence that the anchor asks for, and a hard negative has the same
    noun. The score of a pair is the number of words that its two sentences share.

    Args:
        file: to write.
        count: pairs.
        words: of a positive and of a negative.
        seed: the same seed gives the same pairs.
        scored: whether pairs have scores and no negatives.
    """
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        noun, verb, thing, place, day = map(generator.choice, (NOUNS, VERBS, THINGS, PLACES, DAYS))
        rest = passage(generator, max(0, words - 10))
        row: dict[str, object] = {"anchor": f"Where was the {noun} that {verb} a {thing} on {day}?"}
        row["positive"] = f"On {day} the {noun} {verb} a {thing} near the {place}. {rest}"
        other = sentence(generator)
        if scored:
            row["anchor"] = passage(generator, words)
            row["positive"] = other
            row["score"] = len({*str(row["anchor"]).split()} & {*other.split()})
        else:
            row["negative"] = f"The {noun} went home. {other} {rest}"
        rows.append(json.dumps(row))
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")


def small_tokenizer(tokens: int) -> PreTrainedTokenizerFast:
    """Return a BPE tokenizer on bytes, trained on these texts.

    Args:
        tokens: of its vocabulary, at most.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    generator = random.Random(0)
    backend.train_from_iterator(
        [sentence(generator) for _ in range(500)],
        trainers.BpeTrainer(
            vocab_size=tokens,
            special_tokens=["<pad>", "<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
