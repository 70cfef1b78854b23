"""Training-free encoders of a causal language model, as sentence-transformers modules.

They show what a backbone gives without training. A baseline is one entry of
:data:`BASELINES`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules.transformer import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from transformers import PreTrainedTokenizerBase

from llm2comp.errors import UserError
from llm2comp.template import surround

MAX_TOKENS = 512
"""Tokens of a text and what is put around it; the text beyond is cut."""


@dataclass(frozen=True)
class Baseline:
    """How a text is put to the model, and which outputs become its vector.

    The first token is always BOS, without which a causal model's first
    output is out of the ordinary, and an empty text would have no output.
    """

    pooling: Literal["lasttoken", "weightedmean"]
    before: str = ""
    after: str = ""


BASELINES = {
    "last-token": Baseline("lasttoken"),
    # SGPT (Muennighoff, 2022): position i of n weighs i.
    "weighted-mean": Baseline("weightedmean"),
    # PromptEOL (Jiang et al., 2023).
    "prompteol": Baseline("lasttoken", 'This sentence : "', '" means in one word:"'),
}


def build(name: str, backbone_dir: Path, dtype: torch.dtype = torch.float32) -> SentenceTransformer:
    """Make a training-free encoder.

    Args:
        name: a key of :data:`BASELINES`.
        backbone_dir: transformers folder of a causal language model.
        dtype: of the weights in memory.

    Returns:
        A model of unit vectors, as wide as the backbone's hidden states.

    Raises:
        UserError: if there is no such baseline or folder, or its tokenizer is not a fast one.
    """
    if name not in BASELINES:
        raise UserError(f"unknown baseline {name!r}; there are {', '.join(BASELINES)}")
    if not (backbone_dir / "config.json").is_file():
        raise UserError(f"backbone {backbone_dir} is not a transformers folder: no config.json")
    baseline = BASELINES[name]
    transformer = Transformer(
        str(backbone_dir),
        max_seq_length=MAX_TOKENS,
        model_kwargs={"dtype": dtype},
        unpad_inputs=False,
        # Otherwise a tokenizer with a chat template wraps every text in it.
        modality_config={"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        module_output_name="token_embeddings",
    )
    tokenizer = transformer.tokenizer
    if tokenizer is None or not tokenizer.is_fast:
        raise UserError(f"tokenizer of {backbone_dir} has no fast version; llm2comp needs one")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    _surround(tokenizer, baseline.before, baseline.after)
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode=baseline.pooling)
    return SentenceTransformer(
        modules=[transformer, pooling, Normalize()], similarity_fn_name="cosine"
    )


def _surround(tokenizer: PreTrainedTokenizerBase, before: str, after: str) -> None:
    """Put BOS and ``before`` in front of every text and ``after`` behind it, in place."""
    first = tokenizer.bos_token_id
    if first is None:
        first = tokenizer.eos_token_id  # separates documents where there is no BOS
    front, behind = tokenizer([before, after], add_special_tokens=False)["input_ids"]
    surround(tokenizer.backend_tokenizer, [first, *front], behind)
