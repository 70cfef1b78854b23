"""Convert GGUF files, the format of llama.cpp, to folders that transformers reads."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from transformers import AutoTokenizer, PreTrainedConfig

from llm2comp.errors import UserError, one_line
from llm2comp.model.loading.checkpoint import one_line_errors, read_model
from llm2comp.utils.files import atomic_folder

UNREAD_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that scale positions. transformers leaves them out without a word."""
NEUTRAL = {"rope.scaling.factor": 1.0, "logit_scale": 1.0}
"""Keys of numbers that transformers does not read, with the value that changes nothing."""


def convert_gguf(file: Path, folder: Path) -> None:
    """Dequantise a GGUF file into a float32 safetensors folder, 135M weights in about 20 s.

    Args:
        file: the GGUF file.
        folder: to write; it appears only when it is complete.

    Raises:
        UserError: if the file is not GGUF or not whole, or transformers cannot read all of it.
    """
    reader = _open(file)
    location: dict[str, Any] = {"gguf_file": file.name}
    model = read_model(file.parent, str(file), dtype=torch.float32, **location)
    _require_same_positions_and_logits(reader, model.config, file)
    # The weights are no longer quantised, but with these attributes save_pretrained would refuse.
    for owner, attribute in ((model, "hf_quantizer"), (model.config, "quantization_config")):
        with suppress(AttributeError):
            delattr(owner, attribute)
    with one_line_errors(str(file)):
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **location)
    with atomic_folder(folder) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)


def _open(file: Path) -> GGUFReader:
    """Return a reader of a whole GGUF file that holds a tokenizer.

    Raises:
        UserError: if it is none.
    """
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise UserError(f"backbone {file} is not a GGUF file; download it again")
    try:
        reader = GGUFReader(file)
    except Exception as error:  # numpy, struct and the reader itself raise what comes up
        raise UserError(
            f"backbone {file} is damaged or cut off ({one_line(error)}); download it again"
        ) from error
    if "general.architecture" not in reader.fields:
        raise UserError(f"backbone {file} does not say its architecture; give another GGUF file")
    if "tokenizer.ggml.model" not in reader.fields:
        raise UserError(f"backbone {file} holds no tokenizer; give a GGUF file of a whole model")
    return reader


def _require_same_positions_and_logits(
    reader: GGUFReader, config: PreTrainedConfig, file: Path
) -> None:
    """Check that a GGUF file says nothing about positions and logits that transformers leaves out.

    Raises:
        UserError: if it does; the message names the key or the tensor.
    """
    architecture = reader.fields["general.architecture"].contents()
    said = {
        key.removeprefix(f"{architecture}."): field.contents()
        for key, field in reader.fields.items()
        if key.startswith(f"{architecture}.")
    }
    rotated = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = getattr(config, "rope_parameters", None) or {}
    expected = NEUTRAL | {
        "rope.dimension_count": int(rotated * rope.get("partial_rotary_factor", 1.0)),
        "attn_logit_softcapping": getattr(config, "attn_logit_softcapping", None),
        "final_logit_softcapping": getattr(config, "final_logit_softcapping", None),
    }
    left_out = [key for key, value in expected.items() if said.get(key, value) != value]
    left_out += [tensor.name for tensor in reader.tensors if tensor.name in UNREAD_TENSORS]
    if left_out:
        raise UserError(
            f"backbone {file} would be read wrongly, because transformers leaves out "
            f"{left_out[0]!r}; give the model's safetensors folder or hub id"
        )
