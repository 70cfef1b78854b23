"""Load a causal language model and its tokenizer from anywhere, and probe what it can do.

A backbone is named by a packaged default (``smollm2-135m``), a local folder, a
``.gguf`` file or a hub id. It is accepted by what it does, not by its name: see
:func:`probe`.
"""

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import snapshot_download
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llm2comp.data import catalog
from llm2comp.data.hub import require_model
from llm2comp.errors import UserError, one_line
from llm2comp.model.attention import configure_attention
from llm2comp.utils.files import atomic_folder, cache_dir

PACKAGED = {"smollm2-135m": "SmolLM2-135M-Instruct.Q4_1.gguf"}
"""Backbones that install from a package index: catalogue name to GGUF member."""


def load_backbone(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    bidirectional: bool = True,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal LM and its tokenizer, and probe them.

    Args:
        name: packaged name, local folder, ``.gguf`` file, or hub id.
        dtype: of the weights in memory.
        bidirectional: whether the run will open the attention; a backbone that
            cannot be made bidirectional is then refused.
        trust_remote_code: run code that comes with the model.

    Raises:
        UserError: if it cannot be loaded or fails the probe.
    """
    source = resolve(name)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        if getattr(config, "sliding_window", None) is not None:
            config.sliding_window = None  # a window would hide a text's start from its memory
        model = AutoModelForCausalLM.from_pretrained(
            source, config=config, dtype=dtype, trust_remote_code=trust_remote_code
        )
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(
            f"backbone {name!r} cannot be loaded ({one_line(error)}); "
            f"give a local folder, a .gguf file, a hub id, or one of {sorted(PACKAGED)}"
        ) from error
    configure_attention(model)
    model.train(False)
    probe(model, name, bidirectional=bidirectional)
    return model, tokenizer


def resolve(name: str) -> str:
    """Return what ``from_pretrained`` can read, converting GGUF weights once into the cache."""
    if name in PACKAGED:
        folder = cache_dir() / "models" / name
        if not folder.exists():
            convert_gguf(catalog.fetch(name) / PACKAGED[name], folder)
        return str(folder)
    if name.endswith(".gguf"):
        file = Path(name).expanduser()
        if not file.is_file():
            raise UserError(f"backbone {name}: no such file")
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
        folder = cache_dir() / "models" / f"{file.stem}-{digest}"
        if not folder.exists():
            convert_gguf(file, folder)
        return str(folder)
    local = Path(name).expanduser()
    if local.is_dir():
        return str(local)
    if name.startswith((".", "/", "~")):
        raise UserError(f"backbone {name}: no such folder")
    require_model(name)
    return name


def convert_gguf(file: Path, folder: Path) -> None:
    """Dequantise a GGUF file into a float32 safetensors folder (about 20 s for 135M weights)."""
    location: dict[str, Any] = {"gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **location)
    # The weights are plain now; these leftovers only make save_pretrained refuse.
    for owner, leftover in ((model, "hf_quantizer"), (model.config, "quantization_config")):
        with suppress(AttributeError):
            delattr(owner, leftover)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **location)
    with atomic_folder(folder) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)


def body_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model without its language-modelling head."""
    return cast(PreTrainedModel, model.base_model)


def token_table(model: PreTrainedModel) -> nn.Embedding:
    """Return a model's table of token embeddings."""
    return cast(nn.Embedding, model.get_input_embeddings())


@torch.no_grad()
def probe(model: PreTrainedModel, name: str, *, bidirectional: bool = True) -> None:
    """Check the properties that the method rests on, by running the model.

    A padded text must have the states of the unpadded one on either side; with
    ``is_causal=False`` a change of the last token must move the first state,
    and without it must not.

    Raises:
        UserError: naming the first property that does not hold.
    """
    body = body_of(model)
    size = token_table(model).num_embeddings
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(min(100, size // 2), size, (1, 6), generator=generator).to(model.device)
    changed = text.clone()
    changed[0, -1] = (changed[0, -1] + 1) % size
    # SmolLM2's 30 layers amplify float32's rounding to 1.1e-4 where all tokens see each other; a
    # broken property moves states by a tenth and more.
    tolerance = 1e-3 if model.dtype == torch.float32 else 5e-2

    def states(ids: torch.Tensor, left: int = 0, right: int = 0, **mode: bool) -> torch.Tensor:
        padded = torch.nn.functional.pad(ids, (left, right), value=1)
        mask = torch.nn.functional.pad(torch.ones_like(ids), (left, right))
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        output = body(padded, attention_mask=mask, position_ids=positions, **mode)
        states: torch.Tensor = output.last_hidden_state
        return states[:, left : left + ids.shape[1]].float()

    def moved(one: torch.Tensor, other: torch.Tensor) -> bool:
        return bool((one - other).norm() > tolerance * one.norm())

    def require(holds: bool, broken: str) -> None:
        if not holds:
            raise UserError(f"backbone {name!r} is refused: {broken}")

    for mode in ({}, {"is_causal": False}) if bidirectional else ({},):
        kind = "bidirectional" if mode else "causal"
        plain = states(text, **mode)
        first_moved = moved(plain[:, :1], states(changed, **mode)[:, :1])
        if mode:
            require(first_moved, "its attention stays causal when asked to be bidirectional")
        else:
            require(not first_moved, "its attention is not causal")
        require(
            not moved(plain, states(text, left=3, **mode)), f"left padding changes {kind} states"
        )
        require(
            not moved(plain, states(text, right=3, **mode)), f"right padding changes {kind} states"
        )


def backbone_folder(name: str) -> Path:
    """Return the local folder of a backbone, downloading one that is a hub id.

    Raises:
        UserError: if the hub has no such model or cannot be reached.
    """
    source = resolve(name)
    if Path(source).is_dir():
        return Path(source)
    patterns = ["*.json", "*.safetensors", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(source, allow_patterns=patterns))
    except Exception as error:  # whichever HTTP library is below, it has its own exceptions
        raise UserError(f"backbone {name!r} cannot be downloaded: {one_line(error)}") from error
