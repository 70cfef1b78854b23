"""Write the encoder folders that the clients load, and embed the texts with this process."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import llm2comp
from llm2comp.model import encoder, released
from llm2comp.model.backbone import backbone_folder
from llm2comp.model.compressor import Compressor
from llm2comp.model.folder.reference import TEXTS
from llm2comp.model.lineage import Lineage, StageRecord
from llm2comp.model.lora import trainable_parameters
from llm2comp.model.memory_tokens import add_memory_tokens
from llm2comp.recipe import Recipe
from llm2comp.recipe_parts import Lora

QUERY, PROMPT = "how do whales breathe", "query: "
RELEASED, LAST_TOKEN = "smollm2-135m-llm2comp", "last-token"


@dataclass(frozen=True)
class Folder:
    """A folder, and what a client must compute with it.

    Attributes:
        name: of the column.
        path: of the folder.
        causal: whether all clients must load it.
        has_prompt: whether queries have the prompt.
        texts: to embed.
        embeddings: of the texts, `(texts, dimension)`.
        query: embeddings of the query `(dimension,)`, without and with its prompt.
    """

    name: str
    path: Path
    causal: bool
    has_prompt: bool
    texts: list[str]
    embeddings: NDArray[np.float32]
    query: tuple[NDArray[np.float32], NDArray[np.float32]]


def write_folders(parent: Path) -> list[Folder]:
    """Write folders with causal and bidirectional attention and an export for servers.

    The released encoder comes with them. The export is of a real backbone, because servers compute
    no tiny ones.
    """
    shutil.rmtree(parent, ignore_errors=True)
    backbone = _backbone(parent / "backbone")
    one = _encoder(backbone_folder("smollm2-135m"), parent / "one", causal=True, k=1)
    llm2comp.export(one, "last-token", parent / LAST_TOKEN)
    return [
        _folder("causal", _encoder(backbone, parent / "causal", causal=True), causal=True),
        _folder(RELEASED, released.fetch(RELEASED), causal=True, has_prompt=False),
        _folder("bidirectional", _encoder(backbone, parent / "bidirectional", causal=False)),
        _folder(LAST_TOKEN, parent / LAST_TOKEN, causal=True, of=one),
    ]


def _folder(
    name: str,
    path: Path,
    *,
    causal: bool = False,
    has_prompt: bool = True,
    of: Path | None = None,
) -> Folder:
    """Return a folder with the embeddings of the encoder that it is an export of, or its own."""
    model = llm2comp.load(of or path, "float32")
    texts = [*TEXTS, ""]
    plain, prompted = model.encode([QUERY, PROMPT + QUERY])
    return Folder(name, path, causal, has_prompt, texts, model.encode(texts), (plain, prompted))


def _backbone(folder: Path) -> Path:
    """Write a random Llama whose rotary embeddings are not those of transformers 4 by default."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _encoder(backbone: Path, folder: Path, *, causal: bool, k: int = 4) -> Path:
    """Write an encoder folder with a random adapter."""
    recipe = Recipe.model_validate(
        {
            "name": folder.name,
            "backbone": {"name": str(backbone), "add_bos": True},
            "memory": {"tokens": k},
            "prompts": {"query": PROMPT, "document": ""},
            "stages": [
                {"stage": "pretext", "data": [{"source": "boolq-passages"}], "steps": 1}
                | {"batch_size": 1, "learning_rate": 1}
            ],
        }
    )
    model = LlamaForCausalLM.from_pretrained(backbone).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(backbone)
    extended = add_memory_tokens(model, tokenizer, recipe.memory, recipe.seed, add_bos=True)
    compressor = Compressor(
        model, recipe.memory.tokens, Lora(r=4), bos_id=extended.bos_token_id, causal=causal
    ).eval()
    with torch.no_grad():
        for parameter in trainable_parameters(compressor).values():
            parameter += 0.05 * torch.randn_like(parameter)
    adapter = folder.with_name(f"{folder.name}-adapter")
    compressor.save_adapter(adapter)
    record = StageRecord.of(recipe.stages[0], causal=causal, lora={})
    lineage = Lineage.start(recipe, "memory").after(record)
    encoder.save(encoder.build(lineage, [adapter]), folder, adapter, lineage)
    return folder
