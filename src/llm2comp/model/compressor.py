"""One set of weights that is encoder, student and teacher at the same time.

The encoder is the language model with its LoRA adapter and its memory embeddings. With the adapter
disabled the same tensors are the frozen, causal language model, bit-equal to the original (paper,
"Context compression"; the released code of the paper keeps two full copies instead).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Literal

import torch
from peft import set_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from llm2comp.data.length_batching import batch_by_tokens
from llm2comp.model.causal_lm.parts import Head, body_of, token_table
from llm2comp.model.lora import adapter_layers, add_adapter, require_whole
from llm2comp.recipe_parts import Lora
from llm2comp.utils.finite import require_finite_tensors

TOKENS_AT_ONCE = 1024
"""Tokens per forward pass on a processor; more would not be faster (docs/performance.md)."""


def map_length_buckets(lengths: Tensor, run: Callable[[Tensor], Iterable[Tensor]]) -> list[Tensor]:
    """Run the rows of a batch in buckets of similar length, so that there is little padding.

    On a GPU, and where a batch is small, there is one bucket.

    Args:
        lengths: `(batch,)`, tokens of each row.
        run: takes `(bucket,)`, the indices of rows, and returns one tensor per row.

    Returns:
        One tensor per row, in the order of the batch.
    """
    budget = TOKENS_AT_ONCE if lengths.device.type == "cpu" else len(lengths) * int(lengths.max())
    results: dict[int, Tensor] = {}
    for rows in batch_by_tokens(lengths.cpu().numpy(), budget):
        results.update(zip(rows, run(torch.tensor(rows, device=lengths.device)), strict=True))
    return [results[row] for row in range(len(lengths))]


class Decoder(nn.Module):
    """A causal language model that reads memory in the place of a text. It is frozen.

    Args:
        model: the language model.
        vocabulary: tokens of a text; the rows after them in the token table are memory tokens.
        bos_id: token in front of every text, or None if the model has none.
        scale: `embeddings` or `none`, see `as_input`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: int,
        *,
        bos_id: int | None,
        scale: Literal["none", "embeddings"] = "none",
    ) -> None:
        super().__init__()
        self.bos_id = bos_id
        self.body = body_of(model)
        self.head = Head(model)
        self.vocabulary = vocabulary
        self.token_norm = mean_norm(token_table(model), vocabulary) if scale != "none" else None
        for parameter in model.parameters():  # an untied head too
            parameter.requires_grad_(False)

    def frozen(self) -> AbstractContextManager[None]:
        """Return a block in which the body is the original, causal language model."""
        return nullcontext()

    def as_input(self, memory: Tensor) -> Tensor:
        """Return the memory outputs in the scale in which the decoder reads them.

        With `scale="embeddings"` each memory vector gets the mean norm of the token embeddings.
        States after the final norm are many times longer than token embeddings. Unscaled, they
        drown what the decoder's layers add to them (docs/concepts/ignition.md). The paper feeds
        memory unscaled.

        Args:
            memory: `(batch, k, hidden)`.

        Returns:
            `(batch, k, hidden)`.
        """
        return memory if self.token_norm is None else scaled(memory, self.token_norm)

    def student_states(self, memory: Tensor, input_ids: Tensor, targets: Tensor) -> Tensor:
        """Let the frozen model read `BOS memory tokens` and return its states (the student).

        Args:
            memory: `(batch, m, hidden)`; gradients flow into it.
            input_ids: `(batch, length)`, the tokens after the memory, right-padded.
            targets: `(batch, 1 + length)`, true where a state is wanted: first at the last memory
                position, then at each token.

        Returns:
            `(targets.sum(), hidden)`, the wanted states row by row.
        """
        token_embeddings = self.body.get_input_embeddings()
        bos = [] if self.bos_id is None else [self.bos_id]
        prefix_length = len(bos) + memory.shape[1]

        def states_of(rows: Tensor) -> Iterable[Tensor]:
            wanted = _until_last_target(targets[rows])
            tokens = token_embeddings(input_ids[rows][:, : wanted.shape[1] - 1])
            first = token_embeddings(input_ids.new_tensor(bos).expand(len(rows), -1))
            inputs = torch.cat([first, memory[rows].to(tokens.dtype), tokens], dim=1)
            # No attention mask is needed: padding is on the right, and attention is causal.
            states: Tensor = self.body(inputs_embeds=inputs).last_hidden_state
            return _select(states[:, prefix_length - 1 :], wanted)

        with self.frozen():
            lengths = prefix_length + _target_lengths(targets)
            return torch.cat(map_length_buckets(lengths, states_of))

    @torch.no_grad()
    def teacher_states(self, input_ids: Tensor, targets: Tensor) -> Tensor:
        """Let the frozen model read plain text and return its states (the teacher).

        Args:
            input_ids: `(batch, length)`, right-padded.
            targets: `(batch, length)`, true where a state is wanted.

        Returns:
            `(targets.sum(), hidden)`, the wanted states row by row, without gradient.
        """

        def states_of(rows: Tensor) -> Iterable[Tensor]:
            wanted = _until_last_target(targets[rows])
            states: Tensor = self.body(input_ids[rows][:, : wanted.shape[1]]).last_hidden_state
            return _select(states, wanted)

        with self.frozen():
            return torch.cat(map_length_buckets(_target_lengths(targets), states_of))

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits of the text's vocabulary, without those of memory tokens.

        Args:
            states: `(n, hidden)`. The batch is flat because a batched product would copy the
                weight of the head for each row.

        Returns:
            `(n, vocabulary)`, float32.
        """
        logits: Tensor = self.head(states)
        return logits[:, : self.vocabulary].float()


class Compressor(Decoder):
    """Compress texts into memory, and continue texts from memory, with one set of weights.

    Args:
        model: causal language model whose token table ends with the memory embeddings, which
            `llm2comp.model.memory_tokens.add_memory_tokens` appends. Its body gets the adapter.
        num_memory_embeddings: rows at the end of the table that train; 0 for an objective that
            pools over the text's own tokens.
        lora: the adapter to train.
        bos_id: token in front of every text, or None if the model has none.
        causal: whether the encoder's attention is causal; the decoder's always is.
        scale: `embeddings` or `none`, see `as_input`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        num_memory_embeddings: int,
        lora: Lora,
        *,
        bos_id: int | None,
        causal: bool,
        scale: Literal["none", "embeddings"] = "none",
    ) -> None:
        vocabulary = token_table(model).num_embeddings - num_memory_embeddings
        super().__init__(model, vocabulary, bos_id=bos_id, scale=scale)
        self.num_memory_embeddings = num_memory_embeddings
        self.causal = causal
        self.adapted = add_adapter(self.body, lora, num_memory_embeddings)
        self._adapter_layers = adapter_layers(self.adapted)
        self._frozen = False

    @property
    def memory_ids(self) -> list[int]:
        """Ids of the memory tokens, at the end of the vocabulary."""
        return list(range(self.vocabulary, self.vocabulary + self.num_memory_embeddings))

    @property
    def device(self) -> torch.device:
        """The device that holds the weights."""
        return token_table(self.body).weight.device

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the encoder's last hidden states, after the final norm.

        Args:
            input_ids: `(batch, length)`, padded on either side.
            attention_mask: `(batch, length)`, 1 at tokens and 0 at padding.

        Returns:
            `(batch, length, hidden)`.
        """
        mode = {} if self.causal else {"is_causal": False}
        positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
        states: Tensor = self.body(
            input_ids, attention_mask=attention_mask, position_ids=positions, **mode
        ).last_hidden_state
        return states

    def compress(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the memory outputs of a batch of texts.

        Args:
            input_ids: `(batch, length)`, each row `BOS text memory`, padded on either side. All
                rows have the same number of memory tokens.
            attention_mask: `(batch, length)`, 1 at tokens and 0 at padding.

        Returns:
            `(batch, k, hidden)`, the last hidden states of the memory tokens, after the final norm.
        """

        def memory_of(rows: Tensor) -> Iterable[Tensor]:
            mask = attention_mask[rows]
            columns = mask.any(0)  # without those that hold only padding in this bucket
            ids = input_ids[rows][:, columns]
            states = self.encode(ids, mask[:, columns])
            return states[ids >= self.vocabulary].view(len(rows), -1, states.shape[-1])

        return torch.stack(map_length_buckets(attention_mask.sum(1), memory_of))

    def save_adapter(self, folder: Path) -> None:
        """Write LoRA factors and memory embeddings in PEFT's format.

        Args:
            folder: created if it does not exist.
        """
        self.adapted.save_pretrained(str(folder), save_embedding_layers=False)

    def load_adapter(self, folder: Path) -> None:
        """Load LoRA factors and memory embeddings, to continue training from there.

        Args:
            folder: an adapter folder in PEFT's format.

        Raises:
            RuntimeError: if rank, target modules or the number of memory embeddings differ.
            BrokenModelError: if a number of the adapter is not finite.
        """
        require_whole(self.adapted, folder)
        saved = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
        remedy = "train it again with a lower learning rate, or take another adapter"
        require_finite_tensors(saved, f"adapter {folder}", remedy)
        set_peft_model_state_dict(self.adapted, saved)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Disable the adapter in a block, where the body is the original, causal language model."""
        before = self._frozen
        self._freeze(True)
        try:
            yield
        finally:
            self._freeze(before)

    def _freeze(self, frozen: bool) -> None:
        """Disable the adapter, or enable it.

        PEFT's `disable_adapter` would search all modules each time and change `requires_grad`. With
        gradient checkpointing that happens for each layer that is computed again, and made the
        backward pass of 32 layers twenty times slower.
        """
        for layer in self._adapter_layers:
            object.__setattr__(layer, "_disable_adapters", frozen)
        self._frozen = frozen

    def enable_gradient_checkpointing(self) -> None:
        """Recompute layer activations in the backward pass, to save memory.

        Each layer is recomputed as it was computed first, with the adapter on or off. The backward
        pass runs outside of `frozen`, where the decoder would be recomputed with the adapter on.
        """

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), self.frozen() if self._frozen else nullcontext()

        self.body.gradient_checkpointing_enable(  # type: ignore[no-untyped-call]
            gradient_checkpointing_kwargs={"use_reentrant": False, "context_fn": contexts}
        )


def scaled(memory: Tensor, norm: float) -> Tensor:
    """Return memory `(…, hidden)` with vectors of one norm, in float32."""
    return normalize(memory.float(), dim=-1) * norm


@torch.no_grad()
def mean_norm(table: nn.Embedding, count: int) -> float:
    """Return the mean norm of the embeddings of the first `count` tokens.

    The layer itself computes them, because some architectures scale them (Gemma).
    """
    ids = torch.arange(count, device=table.weight.device)
    norms = [table(part).float().norm(dim=-1) for part in torch.split(ids, TOKENS_AT_ONCE)]
    return torch.cat(norms).mean().item()


def _target_lengths(targets: Tensor) -> Tensor:
    """Return `(batch,)`, the position after the last target of each row of `(batch, length)`."""
    positions = torch.arange(1, targets.shape[1] + 1, device=targets.device)
    return (targets * positions).amax(1)


def _until_last_target(targets: Tensor) -> Tensor:
    """Cut `(batch, length)` after the last target of any row."""
    return targets[:, : _target_lengths(targets).max()]


def _select(states: Tensor, wanted: Tensor) -> Iterable[Tensor]:
    """Return the wanted states of each row: tensors `(wanted in the row, hidden)`."""
    return torch.split(states[wanted], wanted.sum(1).tolist())
