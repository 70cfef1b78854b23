"""One set of weights that is encoder, student decoder and teacher.

The encoder is the language model with its LoRA adapter and memory rows
enabled; with the adapter disabled the very same tensors are the frozen,
causal language model, bit-equal to the original (paper, "Context
compression"; the released code keeps two full copies instead).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Literal, cast

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from llm2comp.data.length_batching import batch_by_tokens
from llm2comp.model.backbone import body_of, token_table
from llm2comp.model.lora import replace_peft_layers
from llm2comp.recipe import Lora


def add_adapter(body: PreTrainedModel, lora: Lora, k: int) -> PeftModel:
    """Add LoRA to the body, in place, and let only it and the table's last k rows train.

    What trains is kept in float32 whatever the frozen weights are: bfloat16
    would lose small updates.
    """
    embedding = token_table(body)
    name = next(name for name, module in body.named_modules() if module is embedding)
    size = embedding.num_embeddings
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        trainable_token_indices={name: list(range(size - k, size))} if k else None,
    )
    adapted = get_peft_model(body, config)
    replace_peft_layers(adapted)
    for parameter in trainable_parameters(adapted).values():
        parameter.data = parameter.data.float()
    return adapted


TOKENS_AT_ONCE = 1024
"""Of a pass on a processor, which more of them would not make faster (docs/performance.md)."""


def map_length_buckets(lengths: Tensor, run: Callable[[Tensor], Iterable[Tensor]]) -> list[Tensor]:
    """Run the rows of a batch in parts of like length, so that little is padded.

    On a GPU, and where a batch is small, there is one part.

    Args:
        lengths: ``(batch,)``, tokens of each row.
        run: from the indices of rows, what each of them gives.

    Returns:
        What each row gives, in the order of the batch.
    """
    budget = TOKENS_AT_ONCE if lengths.device.type == "cpu" else len(lengths) * int(lengths.max())
    found: dict[int, Tensor] = {}
    for rows in batch_by_tokens(lengths.cpu().numpy(), budget):
        found.update(zip(rows, run(torch.tensor(rows, device=lengths.device)), strict=True))
    return [found[row] for row in range(len(lengths))]


def _lengths(targets: Tensor) -> Tensor:
    """Return ``(batch,)``, how far each row of ``(batch, length)`` is read: to its last target."""
    places = torch.arange(1, targets.shape[1] + 1, device=targets.device)
    return (targets * places).amax(1)


def _of_each(states: Tensor, wanted: Tensor) -> Iterable[Tensor]:
    """Return the wanted states of each row."""
    return torch.split(states[wanted], wanted.sum(1).tolist())


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what trains, by name: LoRA factors and memory rows."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


class Compressor(nn.Module):
    """Compress texts into memory, and go on from memory, with one set of weights.

    Args:
        model: causal LM whose embedding table ends with the k memory rows
            (:func:`llm2comp.memory.add_memory_tokens`); its body gets the adapter.
        num_memory_embeddings: rows of the table that train; 0 for a pretext that pools over the
            text's own tokens.
        lora: the adapter to train.
        bos_id: token before every text, if the model has one.
        causal: the encoder's attention; the decoder is always causal.
        scale: ``embeddings`` or ``none``, see :meth:`as_input`.
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
        super().__init__()
        self.num_memory_embeddings = num_memory_embeddings
        self.bos_id = bos_id
        self.causal = causal
        self.body = body_of(model)
        self.head = cast(nn.Module, model.get_output_embeddings())  # type: ignore[no-untyped-call]
        table = token_table(model).weight
        self.vocabulary = len(table) - num_memory_embeddings
        self.token_norm = (
            table[: self.vocabulary].float().norm(dim=-1).mean().item()
            if scale == "embeddings"
            else None
        )
        for parameter in model.parameters():  # an untied head is outside of what PEFT freezes
            parameter.requires_grad_(False)
        self.adapted = add_adapter(self.body, lora, num_memory_embeddings)
        self._frozen = False

    @property
    def memory_ids(self) -> list[int]:
        """Token ids of the memory tokens."""
        return list(range(self.vocabulary, self.vocabulary + self.num_memory_embeddings))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return token_table(self.body).weight.device

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the encoder's last hidden states, after the final norm.

        Args:
            input_ids: ``(batch, length)``, padded on either side.
            attention_mask: ``(batch, length)``, 1 where a token is.

        Returns:
            ``(batch, length, hidden)``.
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
            input_ids: ``(batch, length)``, each row ``BOS text memory`` padded on either side,
                with as many memory tokens as the others.
            attention_mask: ``(batch, length)``, 1 where a token is.

        Returns:
            ``(batch, k, hidden)``: last hidden states, after the final norm, at
            the memory positions.
        """

        def memory(rows: Tensor) -> Iterable[Tensor]:
            mask = attention_mask[rows]
            there = mask.any(0)
            ids = input_ids[rows][:, there]
            states = self.encode(ids, mask[:, there])
            return states[ids >= self.vocabulary].view(len(rows), -1, states.shape[-1])

        return torch.stack(map_length_buckets(attention_mask.sum(1), memory))

    def as_input(self, memory: Tensor) -> Tensor:
        """Return memory outputs ``(batch, k, hidden)`` as the decoder is to read them.

        Scaled to ``embeddings``, each vector gets the mean norm of the token
        embeddings. States leave the final norm many times longer than an
        embedding, so unscaled memory drowns what the decoder's layers add to it
        (docs/ignition.md); the paper feeds it unscaled.
        """
        if self.token_norm is None:
            return memory
        scaled: Tensor = normalize(memory.float(), dim=-1) * self.token_norm
        return scaled

    def student_states(self, memory: Tensor, input_ids: Tensor, targets: Tensor) -> Tensor:
        """Let the frozen model read ``BOS memory tokens`` and return its states (the student).

        Args:
            memory: ``(batch, m, hidden)``; gradients flow into it.
            input_ids: ``(batch, length)``, the tokens behind the memory, right-padded.
            targets: ``(batch, 1 + length)``, true where a state is wanted:
                first the last memory position, then each token's.

        Returns:
            ``(targets.sum(), hidden)``, rows in the order of ``targets``.
        """
        embed = self.body.get_input_embeddings()
        bos = [] if self.bos_id is None else [self.bos_id]
        before = len(bos) + memory.shape[1]

        def states(rows: Tensor) -> Iterable[Tensor]:
            wanted = targets[rows][:, : _lengths(targets[rows]).max()]
            tokens = embed(input_ids[rows][:, : wanted.shape[1] - 1])
            first = embed(input_ids.new_tensor(bos).expand(len(rows), -1))
            prefix = [first, memory[rows].to(tokens.dtype)]
            inputs = torch.cat([*prefix, tokens], dim=1)
            # Right padding under causal attention: no state that is read sees a pad.
            found: Tensor = self.body(inputs_embeds=inputs).last_hidden_state
            return _of_each(found[:, before - 1 :], wanted)

        with self.frozen():
            return torch.cat(map_length_buckets(before + _lengths(targets), states))

    @torch.no_grad()
    def teacher_states(self, input_ids: Tensor, targets: Tensor) -> Tensor:
        """Let the frozen model read plain text and return its states (the teacher).

        Args:
            input_ids: ``(batch, length)``, right-padded.
            targets: ``(batch, length)``, true where a state is wanted.

        Returns:
            ``(targets.sum(), hidden)``, without gradient.
        """

        def states(rows: Tensor) -> Iterable[Tensor]:
            wanted = targets[rows][:, : _lengths(targets[rows]).max()]
            found: Tensor = self.body(input_ids[rows][:, : wanted.shape[1]]).last_hidden_state
            return _of_each(found, wanted)

        with self.frozen():
            return torch.cat(map_length_buckets(_lengths(targets), states))

    def logits(self, states: Tensor) -> Tensor:
        """Return float32 logits ``(n, vocabulary)`` of states ``(n, hidden)``, memory cut off.

        States are flat because a batched product would copy the head's weight for each row.
        """
        logits: Tensor = self.head(states)
        return logits[:, : self.vocabulary].float()

    def save_adapter(self, folder: Path) -> None:
        """Write LoRA and memory rows in PEFT's format."""
        self.adapted.save_pretrained(str(folder), save_embedding_layers=False)

    def load_adapter(self, folder: Path) -> None:
        """Load LoRA and memory rows of the same shape, to train on from there.

        Raises:
            RuntimeError: if rank, target modules or number of memory rows differ.
        """
        saved = load_file(folder / "adapter_model.safetensors")
        own = get_peft_model_state_dict(self.adapted, save_embedding_layers=False)
        if {n: t.shape for n, t in saved.items()} != {n: t.shape for n, t in own.items()}:
            raise RuntimeError("tensors differ in name or shape")
        set_peft_model_state_dict(self.adapted, saved)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Within the block the body is the original, causal language model."""
        with self.adapted.disable_adapter():
            self._frozen = True
            try:
                yield
            finally:
                self._frozen = False

    def enable_gradient_checkpointing(self) -> None:
        """Recompute layer activations in the backward pass, each with its own adapter state.

        The backward pass runs outside of :meth:`frozen`; without this context
        the decoder would be recomputed with the adapter on.
        """

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), self.frozen() if self._frozen else nullcontext()

        self.body.gradient_checkpointing_enable(  # type: ignore[no-untyped-call]
            gradient_checkpointing_kwargs={"use_reentrant": False, "context_fn": contexts}
        )
