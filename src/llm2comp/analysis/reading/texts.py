"""What the frozen language model says from the memory of texts, and how well it predicts.

The losses and divergences are those of stage 1's watch (`llm2comp.training.monitoring.held_out`),
for each token.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev

import torch

from llm2comp.analysis.reading.gap import TOO_SMALL, Interval, gap_closed, in_words
from llm2comp.data.files import READERS, kind_of
from llm2comp.data.text_files import read_texts, replace_surrogates
from llm2comp.errors import UserError, counted
from llm2comp.inference.embed import as_texts
from llm2comp.inference.reading.going_on import Sampling, go_on
from llm2comp.inference.reading.reader import Reader
from llm2comp.model.folder.reference import TEXTS
from llm2comp.training.monitoring.held_out import BATCH, COMPRESSED_SHARE
from llm2comp.utils.standard_input import STANDARD_INPUT
from llm2comp.utils.tables import Cells

GIVEN = {
    "memory": "memory",
    "full": "full text",
    "last": "last k tokens of the text",
    "nothing": "nothing",
    "other": "memory of another text",
    "shuffled": "memory, its tokens in another order",
    "zeroed": "memory set to zero",
}
"""What the language model reads before the tokens whose losses are measured."""
SHUFFLE_SEED = 0

Values = dict[str, list[float]]
"""Numbers in nats, for each key of `GIVEN` one per position."""
Tell = Callable[[str], object]


@dataclass(frozen=True)
class TextReading:
    """What was read of one text.

    Attributes:
        text: as it was given.
        compressed: how many of its tokens are in the memory that the losses are measured with.
        before: these tokens as text; empty if the text is said again, as the predicted tokens are
            the same.
        predicted: the tokens whose losses are measured, as text.
        losses: for each key of `GIVEN`, the loss of each predicted token in nats.
        divergences: for each key of `GIVEN`, `KL(full text || given)` in nats, at each predicted
            token and at the one after them, as the objective `distillation` has it; empty if the
            text is said again.
        said: what the language model says after the memory of the whole text (`memory`), and after
            the text itself (`full`).
    """

    text: str
    compressed: int
    before: str
    predicted: list[str]
    losses: Values
    divergences: Values
    said: dict[str, str] = field(default_factory=dict)

    def loss(self, given: str) -> float:
        """Return the mean loss in nats per token."""
        return mean(self.losses[given])

    def divergence(self, given: str) -> float:
        """Return the mean divergence in nats per position; NaN if the text is said again."""
        return mean(self.divergences[given]) if self.divergences else math.nan

    @property
    def bits(self) -> float:
        """How many bits of the predicted tokens the memory tells.

        `(loss given nothing - loss given memory) x predicted tokens / ln 2`. The predicted tokens
        are the whole text if stage 1 trained memory to say it again, and else those after it.
        """
        gained = self.loss("nothing") - self.loss("memory")
        return gained * len(self.predicted) / math.log(2)


@dataclass(frozen=True)
class Reading:
    """What was read of the memory of texts.

    Attributes:
        model: name of the encoder.
        backbone: name of the language model that reads.
        objective: of stage 1.
        k: memory tokens of a text.
        notes: what to know before the numbers are read.
        texts: one entry for each text.
    """

    model: str
    backbone: str
    objective: str
    k: int
    notes: list[str]
    texts: list[TextReading]

    def loss(self, given: str) -> float:
        """Return the loss in nats per token: the mean over tokens, then over texts."""
        return mean(text.loss(given) for text in self.texts)

    def divergence(self, given: str) -> float:
        """Return the divergence in nats per position: the mean over positions, then over texts."""
        return mean(text.divergence(given) for text in self.texts)

    def error(self, given: str) -> float | None:
        """Return the standard error of `loss` over texts; None for one text."""
        losses = [text.loss(given) for text in self.texts]
        return stdev(losses) / len(losses) ** 0.5 if len(losses) > 1 else None

    @property
    def bits(self) -> float:
        """The mean of `TextReading.bits` over texts."""
        return mean(text.bits for text in self.texts)

    @property
    def gap_closed(self) -> Interval | None:
        """See `llm2comp.analysis.reading.gap.gap_closed`, over texts or tokens of one text."""
        nothing, memory, full = (self._items(given) for given in ("nothing", "memory", "full"))
        return gap_closed(nothing, memory, full)

    def _items(self, given: str) -> list[float]:
        """Return the mean loss of each text, or, of one text, the loss of each token."""
        if len(self.texts) == 1:
            return self.texts[0].losses[given]
        return [text.loss(given) for text in self.texts]

    @property
    def tokens_per_memory_token(self) -> float:
        """How many tokens of a text a memory token replaces: `tokens / k`, the mean over texts."""
        return mean(text.compressed for text in self.texts) / self.k

    def summary(self) -> dict[str, object]:
        """Return the means over texts by name."""
        diverges = any(text.divergences for text in self.texts)
        share = self.gap_closed
        return {
            "loss": {given: self.loss(given) for given in GIVEN},
            "divergence": {given: self.divergence(given) for given in GIVEN if diverges},
            "standard_error": {given: self.error(given) for given in GIVEN},
            "bits": self.bits,
            "gap_closed": share and share._asdict(),
            "tokens_per_memory_token": self.tokens_per_memory_token,
        }

    def as_json(self) -> str:
        """Return everything as JSON."""
        whole = asdict(self)
        for entry, text in zip(whole["texts"], self.texts, strict=True):
            entry["bits"] = text.bits
        return json.dumps(whole | {"mean": self.summary()}, indent=1, ensure_ascii=False)

    def cells(self) -> Cells:
        """Return the table of losses and, unless the text is said again, of divergences."""
        diverges = any(text.divergences for text in self.texts)
        rows = [["given", "nats per token", "bits per token"]]
        rows[0] += ["divergence from full text"] * diverges
        rows[0] += ["standard error"] * (len(self.texts) > 1)
        for given, label in GIVEN.items():
            loss, error = self.loss(given), self.error(given)
            row = [label, f"{loss:.3f}", f"{loss / math.log(2):.3f}"]
            row += [f"{self.divergence(given):.3f}"] * diverges
            rows.append(row if error is None else [*row, f"{error:.3f}"])
        return rows

    def lines(self) -> list[str]:
        """Return what the table says, in words."""
        compressed = mean(text.compressed for text in self.texts)
        predicted = mean(len(text.predicted) for text in self.texts)
        what = "the same tokens" if "reconstruction" in self.objective else "tokens after them"
        share = self.gap_closed
        memory = counted(round(compressed), "token")
        closes = f"it closes {in_words(share)} of the gap" if share else f"the gap is {TOO_SMALL}"
        return [
            f"Memory of {memory} predicts {predicted:.0f} {what}; a memory token replaces "
            f"{self.tokens_per_memory_token:.1f} tokens",
            f"It tells {self.bits:.1f} bits of them",
            f"From nothing to the full text, {closes}",
        ]


def measure(
    reader: Reader, texts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
) -> list[tuple[Values, Values]]:
    """Measure how well the frozen language model predicts tokens from the memory of texts.

    Args:
        reader: the encoder and the language model.
        texts: token ids that are compressed.
        targets: for each text the token ids that are predicted: those after it, or itself.

    Returns:
        The losses and the divergences of each text. As in training, the memory of another text is
        that of the text before it among 16; for a text that is alone, it is that of a fixed text.
    """
    measured: list[tuple[Values, Values]] = []
    for start in range(0, len(texts), BATCH):
        part = slice(start, start + BATCH)
        measured += _measure(reader, texts[part], targets[part])
    return measured


def _measure(
    reader: Reader, texts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
) -> list[tuple[Values, Values]]:
    memory = reader.as_input(reader.compress(texts))
    other = memory.roll(1, dims=0)
    if len(texts) == 1:
        (fixed,) = reader.tokens(TEXTS[-1:])
        other = reader.as_input(reader.compress([fixed[: reader.max_tokens]]))
    order = torch.randperm(reader.k, generator=torch.Generator().manual_seed(SHUFFLE_SEED))
    prefixes = {
        "memory": [reader.prefix(one) for one in memory],
        "full": [reader.prefix(reader.embed(text)) for text in texts],
        "last": [reader.prefix(reader.embed(last_tokens(text, reader.k))) for text in texts],
        "nothing": [reader.prefix()] * len(texts),
        "other": [reader.prefix(one) for one in other],
        "shuffled": [reader.prefix(one[order.to(one.device)]) for one in memory],
        "zeroed": [reader.prefix(torch.zeros_like(one)) for one in memory],
    }
    states = {given: reader.states(prefix, targets) for given, prefix in prefixes.items()}
    measured = []
    for row, target in enumerate(targets):
        of_text = {given: rows[row] for given, rows in states.items()}
        losses = {given: reader.losses(own, target).tolist() for given, own in of_text.items()}
        divergences = {
            given: reader.divergences(own, of_text["full"]).tolist()
            for given, own in of_text.items()
            if not reader.says_again
        }
        measured.append((losses, divergences))
    return measured


def last_tokens(text: Sequence[int], k: int) -> list[int]:
    """Return the last k tokens of a text; a shorter one is filled at its start, as in training."""
    return [text[max(0, place)] for place in range(len(text) - k, len(text))]


def given_texts(given: str | Path | Sequence[str]) -> list[str]:
    """Return a text, the texts of a file, or a list of texts, as a list.

    Raises:
        UserError: if the file cannot be read, or there is no text.
    """
    if isinstance(given, str | Path) and _is_file(given):
        texts = list(read_texts(Path(given)))
    else:
        texts = as_texts([str(given)] if isinstance(given, str | Path) else given)
    if not any(text.strip() for text in texts):
        raise UserError(f"{str(given)!r}: there is no text to read")
    return texts


def _is_file(given: str | Path) -> bool:
    """Return whether a text is the name of a file, there or not; `-` is standard input."""
    if isinstance(given, Path) or given == str(STANDARD_INPUT):
        return True
    if kind_of(Path(given)) in READERS and len(given.split()) == 1:
        return True  # one word such as `text.txt` is a name, maybe misspelt, and hardly a text
    try:
        return Path(given).is_file()
    except (OSError, ValueError):  # too long for a name, or with a null character
        return False


def read(
    reader: Reader,
    texts: Sequence[str],
    prompt: str = "",
    sampling: Sampling | None = None,
    tell: Tell | None = None,
) -> Reading:
    """Read the memory of texts, and measure what it holds.

    The language model goes on from the memory of each whole text. Losses are measured as in
    training: memory of the first three quarters of the tokens predicts the last quarter, or, if
    stage 1 trained it to, memory of all tokens predicts them again.

    Args:
        reader: the encoder and the language model.
        texts: at least one, of two tokens or more.
        prompt: what the language model reads after the memory, and after the text.
        sampling: how it chooses tokens; None lets it say nothing, and measures only.
        tell: gets what is said, piece by piece.

    Raises:
        UserError: if a text has fewer than two tokens.
    """
    tokens, notes = reader.tokens(texts), reader.notes
    passages = [ids[: reader.max_tokens] for ids in tokens]
    if passages != tokens:
        notes.append(f"texts are cut to {reader.max_tokens} tokens, as when they are encoded")
    for number, passage in enumerate(passages, start=1):
        if len(passage) < 2:
            raise UserError(f"text {number} has fewer than two tokens; give a longer one")
    whole = reader.says_again
    splits = [len(ids) if whole else max(1, int(COMPRESSED_SHARE * len(ids))) for ids in passages]
    parts = list(zip(passages, splits, strict=True))
    compressed = [ids[:split] for ids, split in parts]
    targets = [ids if whole else ids[split:] for ids, split in parts]
    said = [_say(reader, ids, prompt, sampling, tell) if sampling else {} for ids in passages]
    measured = measure(reader, compressed, targets)
    rows = zip(texts, compressed, targets, measured, said, strict=True)
    return Reading(
        model=reader.name,
        backbone=str(reader.lineage.backbone and reader.lineage.backbone.name),
        objective=str(reader.lineage.stages[0].objective),
        k=reader.k,
        notes=notes,
        texts=[
            TextReading(
                text=text,
                compressed=len(before),
                before="" if whole else reader.decode(before),
                predicted=[reader.decode([token]) for token in target],
                losses=losses,
                divergences=divergences,
                said=words,
            )
            for text, before, target, (losses, divergences), words in rows
        ],
    )


def _say(
    reader: Reader, ids: list[int], prompt: str, sampling: Sampling, tell: Tell | None
) -> dict[str, str]:
    """Return what the language model says after the memory of a text, and after the text."""
    (prompt_ids,) = reader.tokens([replace_surrogates(prompt)])
    after = reader.embed(prompt_ids)
    (memory,) = reader.as_input(reader.compress([ids]))
    readings: Mapping[str, tuple[str, torch.Tensor]] = {
        "memory": (f"{counted(len(ids), 'token')} in {counted(reader.k, 'memory token')}", memory),
        "full": ("the full text", reader.embed(ids)),
    }
    said = {}
    for given, (label, states) in readings.items():
        if tell:
            tell(f"After {label}:\n{prompt}")
        said[given] = go_on(reader, reader.prefix(states, after), sampling, tell)
    return said
