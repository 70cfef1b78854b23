"""A compressor for any objective, its batch, and a literal encoder and language model."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from llm2comp import recipe
from llm2comp.model.compressor import Compressor
from llm2comp.model.lora import trainable_parameters
from llm2comp.model.memory_tokens import add_memory_tokens
from llm2comp.training.objectives.batch import Batch
from llm2comp.training.objectives.objective import Objective
from llm2comp.training.objectives.registry import OBJECTIVES

K = 3
PASSAGES = [list(range(20, 41)), list(range(60, 72)), [7, 9, 200, 31, 8, 100, 101, 102, 50]]
SPLITS = [12, 5, 1]


@dataclass
class Subject:
    """An objective on a tiny compressor, whose adapter changes the outputs."""

    objective: Objective
    compressor: Compressor
    tokenizer: PreTrainedTokenizerBase
    backbone: Path

    def batch(self, pad_id: int = 0) -> Batch:
        whole = self.objective.whole_passage
        return Batch.of(
            PASSAGES,
            [len(passage) for passage in PASSAGES] if whole else SPLITS,
            memory_ids=self.compressor.memory_ids,
            bos_id=self.compressor.bos_id,
            pad_id=pad_id,
        )

    def loss(self, pad_id: int = 0) -> Tensor:
        torch.manual_seed(0)  # of the tokens to mask
        return self.objective.loss(self.compressor, self.batch(pad_id))

    def encoder_states(self, ids: list[int]) -> Tensor:
        """One text through a model whose adapter is merged, ``(length, hidden)``."""
        encoder = copy.deepcopy(self.compressor.adapted).merge_and_unload()
        mode = {} if self.compressor.causal else {"is_causal": False}
        states: Tensor = encoder(torch.tensor([ids]), **mode).last_hidden_state[0]
        return states

    def language_model(self) -> torch.nn.Module:
        return AutoModelForCausalLM.from_pretrained(self.backbone).eval()


def stage(name: str, **settings: object) -> recipe.Pretext:
    """A stage 1 with an objective."""
    return recipe.Pretext.model_validate(
        {
            "objective": name,
            "data": [{"source": "x"}],
            "steps": 1,
            "batch_size": 4,
            "learning_rate": 1.0,
            **settings,
        }
    )


def make_subject(tiny_backbone: Path, name: str, causal: bool, **settings: object) -> Subject:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny_backbone).eval()
    prompt_format = OBJECTIVES[name].format()
    tokenizer = add_memory_tokens(
        model,
        AutoTokenizer.from_pretrained(tiny_backbone),
        recipe.Memory(tokens=K),
        seed=0,
        prompt_format=prompt_format,
    )
    compressor = Compressor(
        model,
        prompt_format.num_memory_embeddings(K),
        recipe.Lora(r=4, alpha=8, dropout=0.0),
        bos_id=tokenizer.bos_token_id,
        causal=causal,
    ).eval()
    with torch.no_grad():  # LoRA starts at zero, where encoder and decoder are the same
        for parameter in trainable_parameters(compressor).values():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return Subject(
        OBJECTIVES[name].of(tokenizer, stage(name, **settings)),
        compressor,
        tokenizer,
        tiny_backbone,
    )
