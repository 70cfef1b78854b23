"""The layers that get a LoRA: those that a recipe names, or those of attention and MLP.

The paper adapts all linear layers of a Llama block but the one that computes the keys. The default
carries that over to other architectures by the place and the kind of a layer, not by a list of
model names.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llm2comp.errors import UserError

LINEAR = (nn.Linear, Conv1D)
"""Kinds of linear layers. GPT-2 has `Conv1D`, whose weight is transposed."""
KEYS = ("k_proj", "key")
"""Names of layers that compute keys and nothing else."""
ROUTERS = ("router", "gate")
"""Names of the parts that choose experts. A part whose name ends in `_gate` weighs an output."""
NAMES_OF_EXPERTS = ("gate_proj", "up_proj", "down_proj")
"""Where experts are fused, PEFT takes these names for the weights of the experts."""


@dataclass(frozen=True)
class Adapted:
    """What a LoRA adapts.

    Attributes:
        blocks: for each name of a target, how many of the model's blocks have such a layer.
        total: the number of blocks.
        left_out: names of the linear layers and of the experts' weights that have no LoRA.
    """

    blocks: dict[str, int]
    total: int
    left_out: list[str]

    @property
    def record(self) -> dict[str, list[str]]:
        """What the lineage records: `target_modules` and `left_out`."""
        return {"target_modules": list(self.blocks), "left_out": self.left_out}

    def __str__(self) -> str:
        """Return one line for the log."""
        names = [
            name if count == self.total else f"{name} (in {count} of {self.total} blocks)"
            for name, count in self.blocks.items()
        ]
        rest = f"; without LoRA: {', '.join(self.left_out)}" if self.left_out else ""
        return f"LoRA on {', '.join(names)}{rest}"


def target_modules(body: PreTrainedModel, names: Sequence[str] | None) -> list[str]:
    """Return the names of the layers that get a LoRA.

    Without names these are the linear layers of all blocks, except for

    - a layer that computes keys alone, as in the paper;
    - routers and gates;
    - mixers of the Mamba family, because their kernels read the weights and bypass a LoRA;
    - in a model with fused experts, layers of `NAMES_OF_EXPERTS`. The experts' weights are no
      linear layers, and PEFT adapts them only without dropout.

    Args:
        body: a causal language model without its head, and without an adapter.
        names: of linear layers, as PEFT matches them: the end of a path, from a dot on. None for
            the default.

    Returns:
        The names; each matches at least one linear layer.

    Raises:
        UserError: if a name matches no linear layer or also something else, or no layer fits the
            default.
    """
    linear = _linear_layers(body)
    if names is None:
        left_out = (*KEYS, *NAMES_OF_EXPERTS) if _expert_weights(body) else KEYS
        chosen = {path for path in linear if _is_default(body, path, left_out)}
        if not chosen:
            raise UserError(
                "lora.target_modules: this model has no linear layers of attention or MLP in its "
                f"blocks; name some of {', '.join(_shortest_names(linear, linear))}"
            )
        everything = [path for path, _ in body.named_modules() if path]
        return _shortest_names([path for path in linear if path in chosen], everything)
    for name in names:
        matched = [path for path, _ in body.named_modules() if _matches(name, path)]
        if not matched or not set(matched) <= set(linear):
            raise UserError(
                f"lora.target_modules: {name!r} is no linear layer of this model; its linear "
                f"layers are {', '.join(_shortest_names(linear, linear))}"
            )
    return list(names)


def check_adapted(adapted: PeftModel, names: Sequence[str]) -> None:
    """Refuse a model in which PEFT adapted other layers than those that were named.

    Args:
        adapted: a model that PEFT has adapted.
        names: as `target_modules` returns them.

    Raises:
        UserError: if it did, as with the experts of some models, see `NAMES_OF_EXPERTS`.
    """
    body = adapted.get_base_model()
    found = {path for path, module in body.named_modules() if isinstance(module, LoraLayer)}
    linear = (path.removesuffix(".base_layer") for path in _linear_layers(body))
    named = {path for path in linear if any(_matches(name, path) for name in names)}
    if found != named:
        raise UserError(
            "lora.target_modules: for this model PEFT takes "
            f"{', '.join(_shortest_names(sorted(named - found), named))} for the weights of the "
            "experts, which can have no LoRA here; leave these names out"
        )


def adapted_layers(adapted: PeftModel) -> Adapted:
    """Return what the LoRA of a model adapts, as read from the model itself.

    Args:
        adapted: as `llm2comp.model.lora.add_adapter` returns it.
    """
    body = adapted.get_base_model()
    layers = {path: m for path, m in body.named_modules() if isinstance(m, LoraLayer)}
    inside = tuple(f"{path}." for path in layers)
    rest = [
        path
        for path, module in body.named_modules()
        if isinstance(module, LINEAR) and _block(path) and not path.startswith(inside)
    ]
    names = _shortest_names(layers, [*layers, *rest])
    blocks = {
        name: len({_block(path) for path in layers if _matches(name, path)}) for name in names
    }
    total = len({_block(path) for path in (*layers, *rest)})
    left_out = [*_shortest_names(rest, [*layers, *rest]), *_expert_weights(body)]
    return Adapted(blocks, total, left_out)


def _linear_layers(body: nn.Module) -> list[str]:
    """Return the paths of the linear layers, in the order of the model."""
    return [path for path, module in body.named_modules() if isinstance(module, LINEAR)]


def _is_default(body: nn.Module, path: str, left_out: Sequence[str]) -> bool:
    """Return whether the default adapts a linear layer, given names that it leaves out."""
    *parents, name = path.split(".")
    mixer = body.get_submodule(".".join(parents))
    is_mamba = hasattr(mixer, "A_log") and hasattr(mixer, "D")
    chooses = any(part in ROUTERS or part.endswith("_gate") for part in (*parents, name))
    return bool(_block(path)) and name not in left_out and not chooses and not is_mamba


def _block(path: str) -> str:
    """Return the path of the block that holds a layer; empty if it is in no numbered block."""
    parts = path.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return "" if number is None else ".".join(parts[: number + 1])


def _expert_weights(body: nn.Module) -> list[str]:
    """Return the names of the weights that hold a matrix for each expert: module and weight."""
    names = [
        f"{path.rpartition('.')[2]}.{name}"
        for path, module in body.named_modules()
        if _block(path) and not isinstance(module, nn.Conv1d)
        for name, weight in module.named_parameters(recurse=False)
        if weight.dim() == 3 and min(weight.shape) > 1
    ]
    return list(dict.fromkeys(names))


def _matches(name: str, path: str) -> bool:
    """Return whether PEFT takes a name of a target for the layer at a path."""
    return path == name or path.endswith(f".{name}")


def _shortest_names(paths: Iterable[str], everything: Iterable[str]) -> list[str]:
    """Return names that match the paths and nothing else, as short as that allows.

    Args:
        paths: to be matched.
        everything: all paths of the model, those to be matched among them.
    """
    wanted, rest = list(paths), list(everything)
    others = set(rest) - set(wanted)
    names: list[str] = []
    for path in wanted:
        if any(_matches(name, path) for name in names):
            continue
        parts = path.split(".")
        suffixes = (".".join(parts[start:]) for start in reversed(range(len(parts))))
        fits = (s for s in suffixes if not any(_matches(s, other) for other in others))
        names.append(next(fits, path))
    return names
