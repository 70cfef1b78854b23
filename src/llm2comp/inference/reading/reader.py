"""An encoder, which makes memory, beside the frozen language model that reads it.

The encoder is the folder: the backbone with the LoRA of its stages merged. The reader is the
backbone as it was before, which the folder's lineage names.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm2comp.data.hub import download_encoder
from llm2comp.errors import UserError
from llm2comp.inference.load import load
from llm2comp.inference.reading.backbone import (
    FOLDER_OPTION,
    load_reading_backbone,
    require_readable,
    require_same_model,
)
from llm2comp.model import released
from llm2comp.model.causal_lm.parts import Head, body_of, positions_of, token_table
from llm2comp.model.compressor import map_length_buckets, mean_norm, scaled
from llm2comp.model.encoder import encoder_body
from llm2comp.model.lineage import LINEAGE, Lineage
from llm2comp.model.loading.tokenizer import needed_first_token
from llm2comp.utils.choices import Precision

ROWS = 128
"""States whose logits are computed at once."""
TEXTS = 16
"""Texts that are compressed at once."""


@dataclass(frozen=True)
class Reader:
    """An encoder and the frozen language model that reads its memory.

    Attributes:
        name: of the encoder, as it was given.
        lineage: of the encoder.
        encoder: makes memory.
        model: the backbone, a causal language model without any LoRA, in evaluation mode.
        tokenizer: of the backbone.
        token_norm: mean norm of a token embedding if the memory is scaled to it; None if not.
    """

    name: str
    lineage: Lineage
    encoder: SentenceTransformer
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    token_norm: float | None
    _head: Head = field(repr=False)

    @classmethod
    def open(
        cls, name: str, dtype: Precision = "auto", backbone: str | Path | None = None
    ) -> "Reader":
        """Load an encoder and the backbone that it was made of.

        Args:
            name: encoder folder, released name, or hub id.
            dtype: of the encoder, as `llm2comp.inference.load.load` takes it; the backbone gets
                the same.
            backbone: folder, name or hub id of the backbone; None takes the one of the lineage.

        Raises:
            UserError: if the encoder has no memory that a language model can read, or its backbone
                cannot be had or is another one.
        """
        folder = released.local_encoder(name) or download_encoder(name)
        if not (folder / LINEAGE).exists():
            raise UserError(
                f"{name} has no memory to read: it is no encoder of llm2comp (it has no {LINEAGE})"
            )
        lineage = Lineage.read(folder)
        require_readable(name, lineage)
        encoder = load(name, dtype)
        weights = token_table(encoder_body(encoder)).weight
        return cls.beside(encoder, name, lineage, weights.dtype, backbone)

    @classmethod
    def beside(
        cls,
        encoder: SentenceTransformer,
        name: str,
        lineage: Lineage,
        dtype: torch.dtype,
        backbone: str | Path | None,
        remedy: str = FOLDER_OPTION,
        *,
        trust_remote_code: bool = False,
    ) -> "Reader":
        """Put the backbone beside an encoder that is loaded.

        Args:
            encoder: makes memory.
            name: of the encoder, for messages.
            lineage: of the encoder, which `require_readable` accepts.
            dtype: of the backbone.
            backbone: as `open` takes it.
            remedy: what to do if it cannot be had or is another one.
            trust_remote_code: as `load_reading_backbone` takes it.

        Raises:
            UserError: if the backbone cannot be had, or is another one.
        """
        assert lineage.backbone is not None
        assert lineage.memory is not None
        weights = token_table(encoder_body(encoder)).weight
        model, tokenizer = load_reading_backbone(
            name, lineage.backbone, backbone, dtype, remedy, trust_remote_code=trust_remote_code
        )
        require_same_model(name, lineage, token_table(model).weight, weights, remedy)
        rows = token_table(model).num_embeddings
        norm = mean_norm(token_table(model), rows) if lineage.memory.scale != "none" else None
        model.requires_grad_(False)
        cast(nn.Module, model).to(weights.device)
        return cls(name, lineage, encoder, model, tokenizer, norm, Head(model))

    @property
    def k(self) -> int:
        """The number of memory tokens of a text."""
        return self.lineage.num_memory_tokens

    @property
    def hidden(self) -> int:
        """The width of a memory vector."""
        return int(token_table(self.model).weight.shape[1])

    @property
    def says_again(self) -> bool:
        """Whether stage 1 trained memory to give the text again, and not to go on from it."""
        return "reconstruction" in str(self.lineage.stages[0].objective)

    @property
    def max_tokens(self) -> int:
        """The most tokens of a text that become memory; what is behind them is left out."""
        return int(self.encoder.max_seq_length or 0) - len(self._template)

    @property
    def positions(self) -> int:
        """The most tokens that the language model reads."""
        return positions_of(self.model.config) or sys.maxsize

    @property
    def notes(self) -> list[str]:
        """What to know before the numbers are read."""
        later = [one for one in self.lineage.stages[1:] if one.steps]
        if not later or later[-1].reading is not None:
            return []
        names = ", ".join(dict.fromkeys(one.stage for one in later))
        return [
            f"{self.name}: contrastive training ({names}) has moved its "
            "memory since stage 1, which alone trains it to be read; read the folder of stage 1"
        ]

    @property
    def of_text(self) -> tuple[object, ...]:
        """What answers from text alone depend on; equal for encoders that share them."""
        first = tuple(self._template[: -self.k])
        return str(self.lineage.backbone), first, self.k, self.max_tokens, self.model.dtype

    @property
    def _template(self) -> list[int]:
        """What the encoder reads around a text: the first token, if there is one, and memory."""
        return list(self.encoder.tokenizer("")["input_ids"])

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of texts, as the encoder reads them, without special tokens."""
        ids = self.encoder.tokenizer(list(texts), add_special_tokens=False, verbose=False)[
            "input_ids"
        ]
        return [list(of_text) for of_text in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Return token ids as text, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    @torch.no_grad()
    def compress(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Return the memory of texts.

        Args:
            texts: token ids of each text, at most `max_tokens`.

        Returns:
            `(texts, k, hidden)`, float32: the encoder's outputs at the memory tokens. The embedding
            of a text is their mean, scaled to unit length.
        """
        template = self._template
        first, last = template[: -self.k], template[-self.k :]
        rows = [torch.tensor([*first, *text, *last]) for text in texts]
        parts = [
            self._compress(rows[start : start + TEXTS]) for start in range(0, len(rows), TEXTS)
        ]
        return torch.cat(parts) if parts else torch.empty(0, self.k, self.hidden)

    def _compress(self, rows: list[Tensor]) -> Tensor:
        ids = pad_sequence(rows, batch_first=True)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        return self.memory(ids.to(self.model.device), mask.to(self.model.device)).float()

    def memory(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the memory of a batch, with a gradient where the encoder trains.

        Args:
            input_ids: `(batch, length)`, a text and what the encoder puts around it; padding is on
                the right.
            attention_mask: `(batch, length)`, 1 at tokens and 0 at padding.

        Returns:
            `(batch, k, hidden)`.
        """
        lengths = attention_mask.sum(1)

        def memory_of(rows: Tensor) -> Iterable[Tensor]:
            ends = lengths[rows]
            ids, mask = (part[rows, : int(ends.max())] for part in (input_ids, attention_mask))
            states = self.encoder[0]({"input_ids": ids, "attention_mask": mask})["token_embeddings"]
            return [row[end - self.k : end] for row, end in zip(states, ends, strict=True)]

        return torch.stack(map_length_buckets(lengths, memory_of))

    def as_input(self, memory: Tensor) -> Tensor:
        """Return memory `(…, hidden)` in the scale in which it was read in stage 1."""
        return memory if self.token_norm is None else scaled(memory, self.token_norm)

    @torch.no_grad()
    def embed(self, ids: Sequence[int]) -> Tensor:
        """Return embeddings `(len(ids), hidden)` of tokens, as the language model reads them."""
        rows = torch.tensor(list(ids), dtype=torch.long, device=self.model.device)
        embeddings: Tensor = token_table(self.model)(rows)
        return embeddings

    def prefix(self, *parts: Tensor) -> Tensor:
        """Return what the language model reads: BOS, if the encoder has it, and the parts.

        Where the encoder has no BOS and there are no parts, it is BOS or EOS of the backbone,
        because a model needs a token to predict the first token of a text.

        Args:
            parts: `(…, hidden)` each, memory as `as_input` returns it or embeddings of tokens.

        Returns:
            `(length, hidden)`, in the dtype of the language model.
        """
        first = self._template[: -self.k]
        if not first and not sum(len(part) for part in parts):
            first = [needed_first_token(self.tokenizer)]
        start = self.embed(first)
        return torch.cat([start, *(part.to(start) for part in parts)])

    def require_positions(self, tokens: int) -> None:
        """Check that the language model can read so many tokens.

        Raises:
            UserError: if it cannot.
        """
        if tokens > self.positions:
            raise UserError(
                f"the language model of {self.name} has {self.positions} positions, and {tokens} "
                "are needed; give shorter texts or ask for fewer new tokens"
            )

    @torch.no_grad()
    def states(self, prefixes: Sequence[Tensor], after: Sequence[Sequence[int]]) -> list[Tensor]:
        """Let the language model read prefixes and the tokens after them.

        Args:
            prefixes: as `prefix` returns them, at least one position each.
            after: token ids.

        Returns:
            For each prefix `(1 + tokens, hidden)`, the last states at its end and at each token.
        """
        inputs = [
            torch.cat([prefix, self.embed(ids)])
            for prefix, ids in zip(prefixes, after, strict=True)
        ]
        self.require_positions(max(map(len, inputs), default=0))
        lengths = torch.tensor([len(each) for each in inputs], device=self.model.device)
        body = body_of(self.model)

        def states_of(bucket: Tensor) -> Iterable[Tensor]:
            # No attention mask is needed: padding is on the right, and attention is causal.
            rows = bucket.tolist()
            padded = pad_sequence([inputs[row] for row in rows], batch_first=True)
            states = body(inputs_embeds=padded).last_hidden_state
            # A copy, because a part would keep all of the padded states in memory.
            return [
                of_row[len(prefixes[row]) - 1 : len(inputs[row])].clone()
                for row, of_row in zip(rows, states, strict=True)
            ]

        return map_length_buckets(lengths, states_of)

    @torch.no_grad()
    def losses(self, states: Tensor, after: Sequence[int]) -> Tensor:
        """Return `-log p(token | prefix, tokens before)` of each token.

        Args:
            states: `(1 + tokens, hidden)`, as `states` returns them.
            after: the token ids.

        Returns:
            `(tokens,)` in nats, float32, on the processor.
        """
        ids = torch.tensor(list(after), device=states.device)
        parts = [
            cross_entropy(self._head(part).float(), some, reduction="none")
            for part, some in zip(
                torch.split(states[:-1], ROWS), torch.split(ids, ROWS), strict=True
            )
        ]
        return torch.cat(parts).cpu()

    @torch.no_grad()
    def divergences(self, states: Tensor, teacher: Tensor) -> Tensor:
        """Return `KL(teacher || student)` at temperature 1 of each position.

        Args:
            states: `(n, hidden)`, of the student.
            teacher: `(n, hidden)`, of the same model that has read something else before.

        Returns:
            `(n,)` in nats, float32, on the processor.
        """
        parts = []
        for own, other in zip(torch.split(states, ROWS), torch.split(teacher, ROWS), strict=True):
            student, wanted = (self._head(x).float().log_softmax(-1) for x in (own, other))
            parts.append(kl_div(student, wanted, reduction="none", log_target=True).sum(-1))
        return torch.cat(parts).cpu()
