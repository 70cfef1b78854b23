"""Load a causal language model and its tokenizer, and check that the method can use it.

A backbone is named by a packaged default (`smollm2-135m`), a local folder, a `.gguf` file or a hub
id. It is accepted for what it does and not for its name, see `llm2comp.model.causal_lm.probe`.
"""

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
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
from llm2comp.model.causal_lm.dropout import remove_dropout
from llm2comp.model.causal_lm.probe import probe
from llm2comp.model.tokenizer import load_tokenizer
from llm2comp.utils.files import atomic_folder, cache_dir

PACKAGED = {"smollm2-135m": "SmolLM2-135M-Instruct.Q4_1.gguf"}
"""Backbones that install from a package index, and the GGUF file in each package."""


def load_backbone(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    bidirectional: bool = True,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer, and probe the model.

    Args:
        name: packaged name, local folder, `.gguf` file, or hub id.
        dtype: of the weights in memory.
        bidirectional: whether the encoder's attention will be bidirectional; a backbone whose
            attention stays causal is then refused.
        trust_remote_code: whether to run code that comes with the model.

    Returns:
        The model in evaluation mode, set up by `configure_attention`, and its tokenizer.

    Raises:
        UserError: if the backbone cannot be loaded or fails the probe.
    """
    source = resolve_backbone(name)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        remove_dropout(config)
        model = AutoModelForCausalLM.from_pretrained(
            source, config=config, dtype=dtype, trust_remote_code=trust_remote_code
        )
        tokenizer = load_tokenizer(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(
            f"backbone {name!r} cannot be loaded ({one_line(error)}); "
            f"give a local folder, a .gguf file, a hub id, or one of {sorted(PACKAGED)}"
        ) from error
    configure_attention(model)
    model.train(False)
    probe(model, name, bidirectional=bidirectional)
    return model, tokenizer


def resolve_backbone(name: str) -> str:
    """Return the folder or hub id of a backbone, which `from_pretrained` can read.

    GGUF weights are converted into the cache once.

    Args:
        name: packaged name, local folder, `.gguf` file, or hub id.

    Raises:
        UserError: if there is no such file, folder or model.
    """
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
    """Dequantise a GGUF file into a float32 safetensors folder, 135M weights in about 20 s.

    Args:
        file: the GGUF file.
        folder: to write; it appears only when it is complete.
    """
    location: dict[str, Any] = {"gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **location)
    # The weights are no longer quantised, but with these attributes save_pretrained would refuse.
    for owner, attribute in ((model, "hf_quantizer"), (model.config, "quantization_config")):
        with suppress(AttributeError):
            delattr(owner, attribute)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **location)
    with atomic_folder(folder) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)


def backbone_folder(name: str) -> Path:
    """Return the local folder of a backbone; a hub model is downloaded.

    Args:
        name: as `resolve_backbone` takes it.

    Raises:
        UserError: if the hub has no such model or cannot be reached.
    """
    source = resolve_backbone(name)
    if Path(source).is_dir():
        return Path(source)
    patterns = ["*.json", "*.safetensors", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(source, allow_patterns=patterns))
    except Exception as error:  # each HTTP library below the hub has its own
        raise UserError(f"backbone {name!r} cannot be downloaded: {one_line(error)}") from error
