"""How a batch is dealt to the processes, so that together they train on what one process would."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from torch import Tensor
from torch.utils.data import DataLoader

from llm2comp.training.distributed import world

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """How many rows of a batch a process has.

    Attributes:
        rows: rows that this process has. It may have none, if there are more processes than rows;
            it then reads a row only to take part.
        total: rows of all processes.
    """

    rows: int
    total: int


def deal(rows: Sequence[T]) -> list[Sequence[T]]:
    """Return the rows of each process.

    Rows that are sorted by length are dealt one by one, so that all processes take about as long.
    """
    return [rows[number :: world.size()] for number in range(world.size())]


def read_whole_batches(accelerator: Accelerator) -> None:
    """Let every process read the batches of one process, of which its collator takes a share.

    The accelerator would deal whole batches to the processes. It would also lose the order of a
    resumed epoch, because it does not pass the number of the epoch on to the sampler.
    """

    def prepare(loader: DataLoader[Any], *_: object, **__: object) -> Any:
        return prepare_data_loader(
            loader,
            accelerator.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            use_seedable_sampler=accelerator.use_seedable_sampler,
            data_seed=accelerator.dataloader_config.data_seed,
        )

    accelerator.prepare_data_loader = prepare


def as_part_of_a_sum(loss: Tensor) -> Tensor:
    """Return a loss with the gradient that makes the mean over the processes their sum.

    Each process knows the loss of the whole batch, but its gradient only through its own rows. The
    gradient of the loss is the sum over the processes, and DDP, FSDP and DeepSpeed take the mean.
    """
    number = world.size()
    return loss * number - (loss * (number - 1)).detach()
