"""Run a model, to check the properties that the method needs.

A backbone is accepted for what it does and not for its name. Every model is probed after it was
loaded: a backbone before stage 1, and an encoder before each later stage. A property that does not
hold would give wrong losses or wrong embeddings without an error, so the model is refused instead.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedConfig, PreTrainedModel

from llm2comp.errors import BrokenModelError, UserError, one_line
from llm2comp.model.causal_lm.parts import Head, body_of, token_table

SHORT, LONG, WINDOW = 4, 14, 5
"""Tokens of the two texts, and of the sliding window while a model is probed. One text is shorter
than the window and one is longer, whatever the window of the model."""
TOLERANCE, TOLERANCE_HALF = 1e-3, 5e-2
"""Largest relative difference that counts as rounding, in float32 and in half precision. With
bidirectional attention, rounding in float32 changes the states of SmolLM2's 30 layers by 1.1e-4 of
their norm. A broken property changes states by a hundredth and more."""

LAYER_HALF = 1e-2
"""The same for one layer of attention in half precision. Rounding has not grown over layers there,
and what a layer gives for earlier tokens may change by 4e-2 with the last one (SmolLM2's first
layer)."""


@dataclass(frozen=True)
class Attention:
    """Which layers of a model attend, and whether they see later tokens.

    Attributes:
        layers: number of layers.
        attending: number of layers that have attention. The others have, for example, a
            convolution or a state space, and stay causal whatever the attention is.
    """

    layers: int
    attending: int


def probe(model: PreTrainedModel, name: str, *, bidirectional: bool = True) -> Attention:
    """Check a causal language model that was loaded.

    The states of a text must be the same alone, in a batch and padded on either side, for texts
    shorter and longer than any sliding window; from token ids and from their embeddings; in
    training and in evaluation. The head on these states must give the model's own logits. With
    causal attention a change of the last token must not change earlier states; with
    `is_causal=False` it must, and it must reach every layer that attends.

    Args:
        model: in evaluation mode.
        name: of the backbone, for the message.
        bidirectional: whether to check the properties with `is_causal=False` too.

    Raises:
        UserError: naming the first property that does not hold, the largest difference, and what
            to do.
    """
    check = _Probe(body_of(model), f"backbone {name!r}")
    with check.running():
        attention = check.attention_and_padding("causal")
        check.same_from_embeddings()
        check.same_in_training()
        check.same_logits(model)
        if bidirectional:
            check.attention_and_padding("bidirectional", is_causal=False)
    return attention


def probe_encoder(body: PreTrainedModel, name: str) -> Attention:
    """Check an encoder that was loaded, with the attention that its configuration asks for.

    Args:
        body: the transformers model inside the encoder, in evaluation mode.
        name: of the encoder, for the message.

    Raises:
        UserError: as `probe`.
    """
    check = _Probe(body, f"encoder {name!r}")
    with check.running():
        causal = getattr(body.config, "is_causal", True)
        return check.attention_and_padding("causal" if causal else "bidirectional")


def is_half(model: PreTrainedModel) -> bool:
    """Return whether a model computes in half precision."""
    return model.dtype != torch.float32


def tolerance_of(model: PreTrainedModel) -> float:
    """Return the largest relative difference that counts as rounding in a model's precision."""
    return TOLERANCE_HALF if is_half(model) else TOLERANCE


def relative_difference(first: Tensor, second: Tensor, *, half: bool) -> float:
    """Return how far two tensors `(n, width)` are apart, relative to the norms of their rows.

    Args:
        first: the one.
        second: the other, whose norms count.
        half: whether they were computed in half precision. The median of the rows is then returned,
            because rounding may send a token to another expert, which is no fault. Otherwise it is
            the largest.
    """
    first, second = first.float(), second.float()
    differences = (first - second).norm(dim=1) / second.norm(dim=1)
    return float(differences.median() if half else differences.max())


class _Probe:
    """The checks of one model.

    Args:
        body: the model without its head.
        subject: what the message calls it.
    """

    def __init__(self, body: PreTrainedModel, subject: str) -> None:
        self.body = body
        self.subject = subject
        size = token_table(body).num_embeddings
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(min(100, size // 2), size, (LONG + SHORT,), generator=generator)
        self.long, self.short = ids[:LONG].to(body.device), ids[LONG:].to(body.device)
        self.known: dict[tuple[object, ...], Tensor] = {}
        self.half = is_half(body)
        self.tolerance = tolerance_of(body)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run checks without gradients, with a short window, in evaluation mode.

        Raises:
            UserError: if the model raises an error.
        """
        training = self.body.training
        try:
            with torch.no_grad(), _short_windows(self.body):
                yield
        except UserError:
            raise
        except Exception as error:  # a model may raise anything when it is called in a new way
            raise UserError(
                f"{self.subject} is refused: it fails when it reads a text "
                f"({type(error).__name__}: {one_line(error)}); choose another backbone"
            ) from error
        finally:
            self.body.train(training)

    def attention_and_padding(self, kind: str, **mode: bool) -> Attention:
        """Check that attention is what it should be, and that batches change nothing.

        Args:
            kind: `causal` or `bidirectional`.
            mode: `is_causal=False` or nothing, which leaves it to the configuration.
        """
        with _watched_attention(self.body) as reached:
            long = self._states(self.long, **mode)
        short = self._states(self.short, **mode)
        changed = self.long.clone()
        changed[-1] = self.short[0]
        gap = LONG - SHORT
        ids = [self.long, changed, *(pad(self.short, to, value=1) for to in ((gap, 0), (0, gap)))]
        mask = torch.ones(4, LONG, dtype=torch.long, device=long.device)
        mask[2, :gap] = mask[3, SHORT:] = 0
        batch = self._read(torch.stack(ids), mask, **mode)
        moved = relative_difference(batch[1, :-1], batch[0, :-1], half=False)
        self._require_attention(kind, moved, "its attention", self.tolerance)
        limit = LAYER_HALF if self.half else self.tolerance
        for layer, distance in reached.items():
            self._require_attention(kind, distance, f"the attention of {layer}", limit)
        for row, alone, what in (
            (batch[0], long, "a long text"),
            (batch[2, gap:], short, "a short text with padding on the left"),
            (batch[3, :SHORT], short, "a short text with padding on the right"),
        ):
            self._require_equal(
                row, alone, f"{kind} states of {what} in a batch are not those of the text alone"
            )
        return Attention(self.body.config.get_text_config().num_hidden_layers, len(reached))

    def same_from_embeddings(self) -> None:
        """Check that token embeddings give the states of their token ids."""
        embeddings = token_table(self.body)(self.long[None])
        states = self.body(inputs_embeds=embeddings).last_hidden_state[0]
        self._require_equal(
            states, self._states(self.long), "token embeddings give other states than token ids"
        )

    def same_in_training(self) -> None:
        """Check that a model in training mode computes what it computes in evaluation mode."""
        self.body.train()
        states = self._states(self.short)
        self.body.train(False)
        self._require_equal(
            states, self._states(self.short), "in training its states are others, as if by dropout"
        )

    def same_logits(self, model: PreTrainedModel) -> None:
        """Check that the head on the states gives the model's own logits."""
        logits = model(self.long[None]).logits[0]
        head = Head(model)(self._states(self.long))
        self._require_equal(head, logits, "its head does not give the model's own logits")

    def _require_attention(self, kind: str, moved: float, subject: str, limit: float) -> None:
        """Refuse attention of the wrong kind.

        Args:
            kind: `causal` or `bidirectional`, what is wanted.
            moved: how far a change of the last token moves what comes before it.
            subject: what attends, for the message.
            limit: a larger change is no rounding.
        """
        if (kind == "causal") == (moved > limit):
            other = " or causal attention" if kind == "bidirectional" else ""
            raise UserError(
                f"{self.subject} is refused: {subject} is not {kind} (a change of the last token "
                f"moves what comes before it by {moved:.1e} of its norm); choose another "
                f"backbone{other}"
            )

    def _states(self, ids: Tensor, **mode: bool) -> Tensor:
        """Return the states `(length, hidden)` of one text without padding, `(length,)`."""
        key = (len(ids), self.body.training, *mode)
        if key not in self.known:
            self.known[key] = self._read(ids[None], torch.ones_like(ids)[None], **mode)[0]
        return self.known[key]

    def _read(self, ids: Tensor, mask: Tensor, **mode: bool) -> Tensor:
        """Return the states `(batch, length, hidden)` of a batch."""
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        output = self.body(ids, attention_mask=mask, position_ids=positions, **mode)
        states: Tensor = output.last_hidden_state
        if not states.isfinite().all():
            raise BrokenModelError(
                f"{self.subject} is refused: its states are not finite, so its weights are broken "
                "or too large; a training that diverges leaves such a model"
            )
        return states

    def _require_equal(self, first: Tensor, second: Tensor, broken: str) -> None:
        difference = relative_difference(first, second, half=self.half)
        if not difference <= self.tolerance:  # NaN is refused too
            raise UserError(
                f"{self.subject} is refused: {broken} (by {difference:.1e} of their norm, "
                f"{self.tolerance:g} allowed); choose another backbone"
            )


@contextmanager
def _short_windows(body: PreTrainedModel) -> Iterator[None]:
    """Shorten sliding windows, so that a text longer than the window is cheap to read."""
    owners: list[Any] = [m.config for m in body.modules() if isinstance(m, PreTrainedModel)]
    owners += [part for o in owners for part in vars(o).values() if _is_config(part)]
    owners += list(body.modules())
    before = []
    for owner in owners:
        for name in ("sliding_window", "attention_chunk_size"):
            window = vars(owner).get(name)
            if isinstance(window, int) and window > WINDOW:
                before.append((owner, name, window))
                setattr(owner, name, WINDOW)
    try:
        yield
    finally:
        for owner, name, window in reversed(before):
            setattr(owner, name, window)


def _is_config(part: object) -> bool:
    return isinstance(part, PreTrainedConfig)


@contextmanager
def _watched_attention(body: PreTrainedModel) -> Iterator[dict[str, float]]:
    """Measure for each attention layer how far the last token reaches back.

    Each layer is called once more on its input with another last state.

    Yields:
        For each layer, the change of its earlier outputs relative to their norm; it is filled when
        the model runs.
    """
    reached: dict[str, float] = {}

    def hook(name: str) -> Callable[..., None]:
        def call_again(
            layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
        ) -> None:
            states = args[0] if args else kwargs["hidden_states"]
            changed = states.clone()
            changed[:, -1] = -states[:, 0]
            # Gemma 3n's layers write their keys into a mapping that later layers read.
            kwargs = {n: copy.copy(v) if isinstance(v, Mapping) else v for n, v in kwargs.items()}
            args, kwargs = (
                ((changed, *args[1:]), kwargs)
                if args
                else (args, kwargs | {"hidden_states": changed})
            )
            again = layer.forward(*args, **kwargs)
            first, second = (_first(value)[:, :-1].float() for value in (output, again))
            moved = (first - second).norm(dim=-1) / first.norm(dim=-1).clamp(min=1e-12)
            reached[name] = moved.max().item()

        return call_again

    with ExitStack() as stack:
        for name, module in body.named_modules():
            if _is_attention(module) and not any(map(_is_attention, module.children())):
                handle = module.register_forward_hook(hook(name), with_kwargs=True)
                stack.callback(handle.remove)
        yield reached


def _is_attention(module: nn.Module) -> bool:
    return "Attention" in type(module).__name__


def _first(output: Any) -> Tensor:
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor
