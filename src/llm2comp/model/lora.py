"""LoRA and trained memory embeddings: PEFT's adapter, with two layers that move less data.

Both layers compute what PEFT's layers compute. Their parameters have PEFT's names, so stock PEFT
reads what is saved here, and this module reads what stock PEFT saved.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import Linear
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from peft.utils.other import TrainableTokensWrapper
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import embedding
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llm2comp.errors import UserError, one_line
from llm2comp.model.causal_lm.parts import token_table
from llm2comp.model.lora_targets import check_adapted, target_modules
from llm2comp.recipe_parts import Lora


def add_adapter(body: PreTrainedModel, lora: Lora, num_memory_embeddings: int) -> PeftModel:
    """Add LoRA to a model's body, in place, and let only the adapter train.

    The adapter consists of the LoRA factors and of the last rows of the token table, which are the
    memory embeddings. Its parameters are float32 whatever the dtype of the frozen weights, because
    bfloat16 would lose small updates.

    Args:
        body: a causal language model without its head; its layers are replaced in place.
        lora: rank, scale, dropout and target modules.
        num_memory_embeddings: rows at the end of the token table that train; 0 for none.

    Returns:
        The body, wrapped by PEFT.

    Raises:
        UserError: if the model has no layers for `lora.target_modules`, or PEFT cannot adapt them.
    """
    targets = target_modules(body, lora.target_modules)
    table = token_table(body)
    name = next(name for name, module in body.named_modules() if module is table)
    memory_ids = list(range(table.num_embeddings - num_memory_embeddings, table.num_embeddings))
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        trainable_token_indices={name: memory_ids} if memory_ids else None,
    )
    if any(isinstance(module, Conv1D) for module in body.modules()):
        config.fan_in_fan_out = True  # PEFT would set it too, with a warning
    else:
        config._register_custom_module({nn.Linear: LoraLinear})
    try:
        adapted = get_peft_model(body, config)
    except ValueError as error:
        raise UserError(
            f"lora.target_modules: PEFT cannot adapt {', '.join(targets)}: {one_line(error)}"
        ) from error
    check_adapted(adapted, targets)
    for module in cast(nn.Module, adapted).modules():
        if isinstance(module, TrainableTokensWrapper):
            module.token_adapter = MemoryEmbedding.from_peft(module.token_adapter)
    for parameter in trainable_parameters(adapted).values():
        parameter.data = parameter.data.float()
    return adapted


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that train, by name: those of an adapter, or all weights."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def adapter_layers(adapted: PeftModel) -> list[BaseTunerLayer | TrainableTokensWrapper]:
    """Return the layers that can switch their part of the adapter off."""
    kinds = (BaseTunerLayer, TrainableTokensWrapper)
    return [module for module in cast(nn.Module, adapted).modules() if isinstance(module, kinds)]


def require_whole(adapted: PeftModel, folder: Path) -> None:
    """Check that an adapter's file has every tensor of a model's adapter, and no other.

    PEFT leaves what is missing as a new adapter has it, with a warning only.

    Args:
        adapted: a model with an adapter of the same settings.
        folder: of the adapter, in PEFT's format.

    Raises:
        RuntimeError: if a tensor is missing, unknown, or has another shape.
    """
    saved = {name: t.shape for name, t in load_file(folder / SAFETENSORS_WEIGHTS_NAME).items()}
    own = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    expected = {name: tensor.shape for name, tensor in own.items()}
    wrong = sorted(dict(saved.items() ^ expected.items()))
    if wrong:
        raise RuntimeError(
            f"{len(wrong)} of {len(expected)} tensors are missing, unknown or of another shape, "
            f"such as {wrong[0]}"
        )


class LoraLinear(Linear):
    """PEFT's LoRA layer, which scales the few columns between its factors, not its whole output.

    The scaling of the whole output takes two more passes over it in a training step. PEFT also
    copies each input to the dtype of the factors, float32, which autocast then undoes; this layer
    does not.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return `W x + B (s A x)`, with `s = alpha / r`.

        Args:
            x: `(..., inputs)`.
            args: as PEFT's layer takes them.
            kwargs: as PEFT's layer takes them; with any, PEFT's layer computes.

        Returns:
            `(..., outputs)`.
        """
        if self.disable_adapters or self.merged or kwargs or len(self.active_adapters) != 1:
            return super().forward(x, *args, **kwargs)
        name = self.active_adapters[0]
        if name not in self.lora_A or name in self.lora_variant:
            return super().forward(x, *args, **kwargs)
        output: Tensor = self.base_layer(x)
        scaled = self.lora_A[name](self.lora_dropout[name](x)) * self.scaling[name]
        change: Tensor = self.lora_B[name](scaled)
        return (output + change).to(output.dtype)


class MemoryEmbedding(TrainableTokensLayer):
    """PEFT's layer of trained token embeddings, for tokens at the end of the table.

    PEFT copies the whole table to put the trained rows into it, and its backward pass computes the
    gradient of the whole copy: with SmolLM2-135M 49,160 rows, of which eight train.
    """

    @classmethod
    def from_peft(cls, layer: TrainableTokensLayer) -> "MemoryEmbedding":
        """Make a layer for the same table and tokens as a new layer of PEFT, which is not trained.

        Args:
            layer: of one adapter, as `get_peft_model` makes it.
        """
        ((adapter, ids),) = layer.token_indices.items()
        own = cls(layer.base_layer, adapter, ids)
        own.update_layer(adapter, token_indices=ids)
        own.set_adapter(adapter)
        return own

    def forward_adapters(
        self, x: Tensor, active_adapters: Sequence[str], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Return the embeddings `(batch, length, hidden)` of token ids `(batch, length)`."""
        if self.disable_adapters or self.merged or len(active_adapters) != 1:
            return super().forward_adapters(x, active_adapters, *args, **kwargs)
        table = cast(nn.Embedding, self.base_layer)
        trained = self.trainable_tokens_delta[active_adapters[0]]
        index = x - (table.num_embeddings - len(trained))
        memory = embedding(index.clamp(min=0), trained.to(table.weight.dtype))
        # Gemma's embedding layer scales its output.
        scale = getattr(table, "embed_scale", 1)
        memory = memory * (scale.to(memory.dtype) if isinstance(scale, Tensor) else scale)
        return torch.where((index >= 0)[..., None], memory, table(x))
