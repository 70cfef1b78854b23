"""Put a model that is in memory into the module with which sentence-transformers runs it."""

import tempfile
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import save_file
from sentence_transformers.base.modules.transformer import Transformer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm2comp.model.loading.checkpoint import silent

Module = TypeVar("Module", bound=Transformer)


def has_own_code(body: PreTrainedModel) -> bool:
    """Return whether a model's code came with it; whoever loaded the model has allowed it."""
    return type(body).__module__.startswith("transformers_modules.")


def module_around(
    body: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    kind: type[Module],
    **options: Any,
) -> Module:
    """Return the stock module around a body, without a copy of its weights.

    The module can only be made from a folder. So it is made from one that holds everything but the
    weights, with a model that takes no memory, and gets the body afterwards.

    Args:
        body: a language model without its head.
        tokenizer: of the module.
        kind: `Transformer` or a subclass.
        options: further arguments of `kind`.
    """
    own_code = has_own_code(body)
    if own_code:  # so that it is saved with the weights
        type(body).register_for_auto_class("AutoModel")  # type: ignore[no-untyped-call]
    trust = {"trust_remote_code": own_code}
    with silent(), tempfile.TemporaryDirectory() as folder:
        body.save_pretrained(folder, state_dict={})
        save_file({}, Path(folder) / "model.safetensors", {"format": "pt"})
        tokenizer.save_pretrained(folder)
        module: Module = kind(
            folder,
            model_kwargs={"device_map": "meta", **trust},
            config_kwargs=trust,
            processor_kwargs=dict(trust),
            unpad_inputs=False,
            **options,
        )
    module.model = body
    return module
