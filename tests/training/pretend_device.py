"""A device that computes on the processor, and refuses to mix its tensors with the processor's.

A GPU refuses to add one of its tensors to one in main memory, and no test on a processor sees that.
Here, tensors say that they are on the device `meta`, but hold numbers in main memory.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "meta"
"""The only device without memory that automatic differentiation knows everywhere."""
_MOVES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class Pretended(Tensor):
    """A tensor on the device.

    Args:
        inner: the same on the processor.
    """

    inner: Tensor

    @staticmethod
    def __new__(cls: Any, inner: Tensor) -> "Pretended":
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=NAME,
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Pretended({self.inner})"

    def tolist(self) -> Any:
        return self.inner.tolist()

    def new_tensor(self, data: Any, **options: Any) -> Tensor:
        return Pretended(self.inner.new_tensor(data, **options))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Makes tensors on the device where a function that takes none is asked to."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


class _Constants(TorchFunctionMode):
    """Makes tensors from numbers on the device, which no dispatch mode is asked about."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and options.get("device") is not None:
            made = func(*args, **options | {"device": "cpu"})
            return Pretended(made) if torch.device(options["device"]).type == NAME else made
        return func(*args, **options)


def _call(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Call a function on the processor, if all of its tensors are on one device.

    Raises:
        RuntimeError: if they are not; a tensor with one number may be on the processor.
    """
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    here = [tensor for tensor in tensors if isinstance(tensor, Pretended)]
    others = [t for t in tensors if not isinstance(t, Pretended) and t.dim() > 0]
    if here and others and func not in _MOVES:
        raise RuntimeError(f"{func} got tensors of two devices: {[tuple(t.shape) for t in others]}")
    device = kwargs.get("device")
    result_here = bool(here) if device is None else torch.device(device).type == NAME
    inner_args, inner_kwargs = tree_map(_inner, (args, kwargs))
    if device is not None:
        inner_kwargs["device"] = torch.device("cpu")
    result = func(*inner_args, **inner_kwargs)
    if func._schema.name.endswith("_") and not func._schema.name.endswith("__"):
        return args[0]  # it was changed in place
    return tree_map(_outer, result) if result_here else result


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, Pretended) else value


def _outer(value: Any) -> Any:
    return Pretended(value) if isinstance(value, Tensor) else value


def move(model: nn.Module) -> None:
    """Put the weights of a model on the device, in place."""
    moved: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                new = nn.Parameter(Pretended(parameter.detach()), parameter.requires_grad)
                module._parameters[name] = moved.setdefault(id(parameter), new)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = Pretended(buffer)


@contextmanager
def pretended() -> Iterator[Callable[[Tensor], Tensor]]:
    """Compute on the device in a block, and yield what puts a tensor there."""
    with _Constants(), _Mode():
        yield Pretended
