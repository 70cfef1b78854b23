"""Load a causal language model and its tokenizer, and check that the method can use it.

A backbone is named by a packaged default (`smollm2-135m`), a local folder, a `.gguf` file or a hub
id. It is accepted for what it does and not for its name, see `probe`.
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
        UserError: if the backbone cannot be loaded or fails `probe`.
    """
    source = resolve_backbone(name)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        if getattr(config, "sliding_window", None) is not None:
            # With a window, memory tokens would not see the start of a long text.
            config.sliding_window = None
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


def body_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model without its language-modelling head; a body itself is returned as it is."""
    return cast(PreTrainedModel, model.base_model)


def token_table(model: PreTrainedModel) -> nn.Embedding:
    """Return the embedding layer, whose weight is the token table `(tokens, hidden)`."""
    return cast(nn.Embedding, model.get_input_embeddings())


@torch.no_grad()
def probe(model: PreTrainedModel, name: str, *, bidirectional: bool = True) -> None:
    """Run a model to check the properties that the method needs.

    Padding on either side must not change the states of a text. A change of the last token must
    change the first state with `is_causal=False`, and must not change it otherwise.

    Args:
        model: in evaluation mode.
        name: of the backbone, for the message.
        bidirectional: whether to check the properties with `is_causal=False` too.

    Raises:
        UserError: naming the first property that does not hold.
    """
    body = body_of(model)
    size = token_table(model).num_embeddings
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(min(100, size // 2), size, (1, 6), generator=generator).to(model.device)
    changed = text.clone()
    changed[0, -1] = (changed[0, -1] + 1) % size
    # With bidirectional attention, rounding in float32 changes the states of SmolLM2's 30 layers
    # by 1.1e-4 of their norm. A broken property changes states by a tenth and more.
    tolerance = 1e-3 if model.dtype == torch.float32 else 5e-2

    def states(ids: torch.Tensor, left: int = 0, right: int = 0, **mode: bool) -> torch.Tensor:
        padded = torch.nn.functional.pad(ids, (left, right), value=1)
        mask = torch.nn.functional.pad(torch.ones_like(ids), (left, right))
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        output = body(padded, attention_mask=mask, position_ids=positions, **mode)
        states: torch.Tensor = output.last_hidden_state
        return states[:, left : left + ids.shape[1]].float()

    def differ(first: torch.Tensor, second: torch.Tensor) -> bool:
        return bool((first - second).norm() > tolerance * first.norm())

    def require(holds: bool, broken: str) -> None:
        if not holds:
            raise UserError(f"backbone {name!r} is refused: {broken}")

    for mode in ({}, {"is_causal": False}) if bidirectional else ({},):
        kind = "bidirectional" if mode else "causal"
        plain = states(text, **mode)
        first_differs = differ(plain[:, :1], states(changed, **mode)[:, :1])
        if mode:
            require(first_differs, "its attention stays causal when asked to be bidirectional")
        else:
            require(not first_differs, "its attention is not causal")
        require(
            not differ(plain, states(text, left=3, **mode)), f"left padding changes {kind} states"
        )
        require(
            not differ(plain, states(text, right=3, **mode)), f"right padding changes {kind} states"
        )


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
