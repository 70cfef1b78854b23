"""A loss over the texts of all processes, which is the loss of one process with the same batch."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from llm2comp.training.distributed import world


class Gathered:
    """Gives losses the embeddings of all processes.

    The losses of sentence-transformers can gather negatives themselves (`gather_across_devices`),
    but only if all processes have the same number of texts; and CoSENT and those of distillation
    cannot. Here each process computes the loss of the whole batch from all embeddings, and its
    gradient through its own ones. That costs each process the similarities of a whole batch, which
    are few compared with what a language model computes for a text.

    Attributes:
        counts: for each column of texts, the texts of each process.
    """

    def __init__(self) -> None:
        self.counts: list[list[int]] = []

    def attach_to(self, losses: Iterable[nn.Module]) -> None:
        """Let losses read the embeddings of all processes, in place."""
        for loss in {id(loss): loss for loss in losses}.values():
            cached = getattr(loss, "uses_gradient_cache", False)
            name = "calculate_loss" if cached else "compute_loss_from_embeddings"
            setattr(loss, name, partial(self._call, getattr(loss, name)))

    def _call(self, compute: Callable[..., Tensor], *arguments: Any, **options: Any) -> Tensor:
        return compute(*map(self._of_all, arguments), **options)

    def _of_all(self, value: list[Tensor | list[Tensor]] | Tensor | None) -> Any:
        """Return embeddings or labels of all processes.

        Args:
            value: for each column its embeddings, or those of each mini-batch; or labels, one for
                each row.
        """
        if isinstance(value, Tensor):
            return world.gather(value, self.counts[0])
        if value is None:
            return None
        columns = zip(value, self.counts, strict=True)
        return [self._column(column, counts) for column, counts in columns]

    def _column(self, column: Tensor | list[Tensor], counts: Sequence[int]) -> Any:
        if isinstance(column, Tensor):
            return world.gather(column, counts)
        return [world.gather(torch.cat(column), counts)]
