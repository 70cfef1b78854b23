"""Load a causal language model and its tokenizer, and check that the method can use it.

A backbone is named by a packaged default (`smollm2-135m`), a local folder, a `.gguf` file or a hub
id. It is accepted for what it does and not for its name, see `llm2comp.model.causal_lm.probe`.
"""

import hashlib
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import metadata_load
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from yaml import YAMLError

from llm2comp.data import catalog
from llm2comp.data.hub import download_model
from llm2comp.errors import UserError
from llm2comp.model.attention import configure_attention, require_attention
from llm2comp.model.causal_lm.dropout import remove_dropout
from llm2comp.model.causal_lm.probe import probe
from llm2comp.model.folder.in_float32 import InFloat32
from llm2comp.model.loading import four_bit
from llm2comp.model.loading.checkpoint import read_config, read_model, read_tokenizer
from llm2comp.model.loading.gguf import convert_gguf
from llm2comp.recipe_parts import Backbone
from llm2comp.utils.files import cache_dir
from llm2comp.utils.hardware import compute_dtype

PACKAGED = {"smollm2-135m": "SmolLM2-135M-Instruct.Q4_1.gguf"}
"""Backbones that install from a package index, and the GGUF file in each package."""
DRAWS_EXPERTS = ("phimoe",)
"""Architectures with noise that no setting switches off, and a short text need not show."""
_COMMIT = re.compile(r"[0-9a-f]{40}")


def load_backbone(
    name: str,
    *,
    dtype: torch.dtype | Literal["auto"] = torch.float32,
    bidirectional: bool = True,
    trust_remote_code: bool = False,
    revision: str | None = None,
    attn_implementation: str | None = None,
    load_in_4bit: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer, and probe the model.

    Args:
        name: packaged name, local folder, `.gguf` file, or hub id.
        dtype: of the weights in memory; `auto` is that of the file.
        bidirectional: whether the encoder's attention will be bidirectional; a backbone whose
            attention stays causal is then refused.
        trust_remote_code: whether to run code that comes with the model.
        revision: of a hub model: branch, tag or commit.
        attn_implementation: as `llm2comp.model.attention.configure_attention` takes it.
        load_in_4bit: whether to load linear layers in 4 bits, for a LoRA to train on.

    Returns:
        The model in evaluation mode, set up by `configure_attention`, and its tokenizer.

    Raises:
        UserError: if the backbone cannot be loaded or fails the probe.
    """
    folder = backbone_folder(name, revision, code=trust_remote_code)
    config = read_config(folder, name, trust_remote_code=trust_remote_code)
    if config.model_type in DRAWS_EXPERTS:
        raise UserError(
            f"backbone {name!r} is refused: in training its states are others, because it draws "
            "its experts at random; choose another backbone"
        )
    remove_dropout(config)
    options = {}
    if load_in_4bit:
        assert isinstance(dtype, torch.dtype)  # what trains has one; "auto" is for merging
        options = four_bit.options(dtype)
    model = read_model(
        folder, name, config, dtype=dtype, trust_remote_code=trust_remote_code, **options
    )
    tokenizer = read_tokenizer(folder, name, trust_remote_code=trust_remote_code)
    configure_attention(model, attn_implementation)
    four_bit.keep_gradients(model)
    model.train(False)
    # In float16, in which no model here computes, states may be too large.
    with InFloat32() if model.dtype == torch.float16 else nullcontext():
        probe(model, name, bidirectional=bidirectional)
    return model, tokenizer


def require_trainable(backbone: Backbone) -> None:
    """Check that this machine has what a recipe's backbone needs to be trained.

    Raises:
        UserError: naming the package or the device that is missing.
    """
    dtype = compute_dtype(backbone.dtype)
    require_attention(backbone.attn_implementation, dtype, training=True)
    if backbone.load_in_4bit:
        four_bit.require_installed()


def backbone_folder(
    name: str, revision: str | None = None, *, code: bool = False, weights: bool = True
) -> Path:
    """Return the local folder of a backbone.

    A hub model is downloaded into the hub's cache, and GGUF weights are converted into ours, once.

    Args:
        name: packaged name, local folder, `.gguf` file, or hub id.
        revision: of a hub model: branch, tag or commit.
        code: whether to download the Python files of a hub model too.
        weights: whether to download the weights of a hub model.

    Raises:
        UserError: if there is no such file, folder or model.
    """
    local = _local_folder(name)
    if local is None:
        return download_model(name, revision, code=code, weights=weights)
    if revision is not None:
        raise UserError(f"backbone {name} is on this machine; backbone.revision is for hub models")
    return local


def licence_of(name: str, revision: str | None = None) -> str | None:
    """Return the licence of a backbone as the hub abbreviates it; None if it is not known.

    Args:
        name: as `backbone_folder` takes it.
        revision: as `backbone_folder` takes it.
    """
    if name in PACKAGED:
        return catalog.entry(name).licence.lower()
    return licence_in(backbone_folder(name, revision, weights=False))


def licence_in(folder: Path) -> str | None:
    """Return the licence that the model card in a folder names; None if it is not known."""
    card = folder / "README.md"
    try:
        metadata = metadata_load(card) if card.is_file() else None
    except (OSError, ValueError, YAMLError):
        return None
    licence = (metadata or {}).get("license")
    return licence if isinstance(licence, str) else None


def pinned(backbone: Backbone) -> Backbone:
    """Return a backbone whose revision is the commit of the hub's model that it names now.

    A later download then gives the same weights. A backbone on this machine has no revision.

    Args:
        backbone: as the recipe has it.

    Raises:
        UserError: if the hub has no such model, or cannot be reached and the cache has no copy.
    """
    if is_commit(backbone.revision) or _local_folder(backbone.name) is not None:
        return backbone
    folder = download_model(backbone.name, backbone.revision, code=backbone.trust_remote_code)
    return backbone.model_copy(update={"revision": folder.name})


def is_commit(revision: str | None) -> bool:
    """Return whether a revision of the hub names one version for good."""
    return revision is not None and bool(_COMMIT.fullmatch(revision))


def _local_folder(name: str) -> Path | None:
    """Return the folder of a backbone on this machine; None if the name can only be a hub id."""
    if name in PACKAGED:
        folder = cache_dir() / "models" / name
        if not folder.exists():
            convert_gguf(catalog.fetch(name) / PACKAGED[name], folder)
        return folder
    local = Path(name).expanduser()
    if name.endswith(".gguf"):
        if not local.is_file():
            raise UserError(f"backbone {name}: no such file")
        with local.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
        folder = cache_dir() / "models" / f"{local.stem}-{digest}"
        if not folder.exists():
            convert_gguf(local, folder)
        return folder
    if local.is_dir():
        return local
    if name.startswith((".", "/", "~")):
        raise UserError(f"backbone {name}: no such folder")
    return None
