"""The backbone of an encoder, which reads its memory: whether there is one, and loading it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm2comp.errors import UserError
from llm2comp.inference.load import trusted
from llm2comp.model.backbone import backbone_folder, load_backbone
from llm2comp.model.lineage import Lineage
from llm2comp.recipe_parts import Backbone

READABLE = "memory"
"""The prompt format of the objectives whose memory the frozen model reads in training."""
FOLDER_OPTION = "name its folder with --backbone"
"""What the commands that read memory offer if the backbone is not found, or is another one."""


def require_readable(name: str, lineage: Lineage) -> None:
    """Check that an encoder has memory that a language model can read.

    Args:
        name: of the encoder, for the message.
        lineage: of the encoder.

    Raises:
        UserError: if it has none, with the reason.
    """
    if lineage.backbone is None:
        raise UserError(f"{name} has no memory to read: it began as an encoder of others")
    if lineage.prompt_format != READABLE:
        objective = lineage.stages[0].objective if lineage.stages else lineage.prompt_format
        raise UserError(
            f"{name} has no memory to read: its stage 1 was trained with {objective}; take an "
            "encoder whose stage 1 compresses (continuation, distillation, reconstruction)"
        )
    if lineage.compiled is not None or lineage.last_token:
        raise UserError(f"{name} is an export; give the folder that it was made from")


def load_reading_backbone(
    name: str,
    recorded: Backbone,
    given: str | Path | None,
    dtype: torch.dtype,
    remedy: str = FOLDER_OPTION,
    *,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the backbone of an encoder.

    Args:
        name: of the encoder, for the message.
        recorded: the backbone, as the lineage has it.
        given: its folder, name or hub id, if it is not the one that is recorded.
        dtype: of its weights.
        remedy: what to do if it cannot be had.
        trust_remote_code: run the Python code that comes with it if the encoder was made with it;
            the environment may allow that too.

    Raises:
        UserError: if it cannot be had.
    """
    wanted = str(given or recorded.name)
    with _of_memory(name, recorded, remedy):
        return load_backbone(
            wanted,
            dtype=dtype,
            bidirectional=False,  # the frozen model is causal, whatever the encoder is
            trust_remote_code=recorded.trust_remote_code and (trust_remote_code or trusted()),
            revision=recorded.revision if wanted == recorded.name else None,
        )


def require_backbone(name: str, recorded: Backbone, remedy: str) -> None:
    """Check that the backbone of an encoder is there, without its weights.

    Args:
        name: as `load_reading_backbone` takes it.
        recorded: as `load_reading_backbone` takes it.
        remedy: as `load_reading_backbone` takes it.

    Raises:
        UserError: if it is not.
    """
    with _of_memory(name, recorded, remedy):
        backbone_folder(recorded.name, recorded.revision, weights=False)


@contextmanager
def _of_memory(name: str, recorded: Backbone, remedy: str) -> Iterator[None]:
    """Say in a block what a backbone that cannot be had is for."""
    try:
        yield
    except UserError as error:
        raise UserError(
            f"the memory of {name} is read by its backbone {recorded.name}, which cannot be had "
            f"({error}); {remedy}"
        ) from error


def require_same_model(
    name: str, lineage: Lineage, own: Tensor, merged: Tensor, remedy: str = FOLDER_OPTION
) -> None:
    """Check that a backbone is the one that an encoder was made of, by the token embeddings.

    Stages with a LoRA leave those as they are, except for the memory tokens at the end. They are
    compared in the coarsest dtype that one of them was rounded to.

    Args:
        name: of the encoder, for the message.
        lineage: of the encoder.
        own: token embeddings of the backbone.
        merged: token embeddings of the encoder.
        remedy: what to do if it is another one.

    Raises:
        UserError: if it is another one.
    """
    shape = (len(merged) - lineage.num_memory_tokens, merged.shape[1])
    same = tuple(own.shape) == shape
    if same and all(stage.lora is not None for stage in lineage.stages):
        # The folder may have rounded them, and so may loading one of the two.
        saved: torch.dtype = getattr(torch, lineage.dtype or "float32")
        coarsest = max(own.dtype, merged.dtype, saved, key=lambda dtype: torch.finfo(dtype).eps)
        first, second = (table.cpu().to(coarsest) for table in (own, merged[: len(own)]))
        same = torch.equal(first, second)
    if not same:
        raise UserError(
            f"{name} was not made of this backbone "
            f"({lineage.backbone.name if lineage.backbone else ''}): the token embeddings differ; "
            f"{remedy}"
        )
