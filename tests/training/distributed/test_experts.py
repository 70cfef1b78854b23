"""A mixture of experts trains in two processes as in one, also with experts that get no token."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from distributed_runs import losses, said, same, start
from torch import nn
from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM

from llm2comp.errors import UserError
from llm2comp.training.distributed import launch, world

EXPERTS = 64
"""So many that some get none of the tokens that a process has."""


@pytest.fixture
def mixture(tiny_backbone: Path, tmp_path: Path) -> Path:
    """A backbone whose tokens go to one of the experts each."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MixtralForCausalLM(
            MixtralConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=8,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=2048,
                initializer_range=0.2,
                num_local_experts=EXPERTS,
                num_experts_per_tok=1,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    model.save_pretrained(tmp_path / "mixture")
    tokenizer.save_pretrained(tmp_path / "mixture")
    return tmp_path / "mixture"


@pytest.mark.exhaustive
def test_experts_without_a_token_change_nothing(
    recipe: dict[str, Any], mixture: Path, tmp_path: Path
) -> None:
    """Stages 1 and 2 train a LoRA, and stage 3 all weights, the experts among them.

    In a longer stage 3 rounding would send a token to another expert in the end.
    """
    pretext, unsupervised, supervised = recipe["stages"]
    all_weights = {"lora": None, "memory_learning_rate": None, "learning_rate": 1e-4, "steps": 8}
    stages = [pretext, unsupervised, supervised | all_weights]
    backbone = recipe["backbone"] | {"name": str(mixture)}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | {"backbone": backbone, "stages": stages}))
    runs = [
        {"recipe": str(path), "processes": n}
        | dict.fromkeys(("out", "said"), str(tmp_path / f"{n}"))
        for n in (1, 2)
    ]
    assert start(runs, tmp_path) == [[0], [0, 0]], said(tmp_path, "2")
    found, expected = losses(tmp_path / "2"), losses(tmp_path / "1")
    assert len(expected) == 5 + 5 + 8
    assert same(found, expected)


def test_experts_that_are_modules_of_their_own_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only code from the hub has them. DDP would wait for the gradient of one without a token."""
    experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
    block = nn.ModuleDict({"attention": nn.Linear(2, 2), "experts": experts})
    model = nn.ModuleDict({"layers": nn.ModuleList([block])})
    launch.require_equal_parts(model)
    monkeypatch.setattr(world, "size", lambda: 2)
    with pytest.raises(UserError, match=r"layers\.0\.experts\.0\.weight .*target_modules"):
        launch.require_equal_parts(model)
    experts.requires_grad_(False)
    launch.require_equal_parts(model)
