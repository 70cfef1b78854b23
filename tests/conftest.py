"""Shared fixtures: a tiny Llama with a tokenizer, made in memory, so that tests run in seconds."""

import os
from collections.abc import Iterator
from pathlib import Path

# Before any import of the hub's client: nothing in the tests may wait for a network timeout.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SENTENCES = [
    "A compiler translates source code into instructions that a processor can run.",
    "The river rises in the mountains and reaches the sea after two hundred miles.",
    "She planted tomatoes, beans and a row of sunflowers behind the old house.",
    "Interest rates were left unchanged, as most economists had expected.",
    "The orchestra rehearsed the second movement until late in the evening.",
    "Whales are mammals: they breathe air and feed their young with milk.",
    "The museum keeps a small collection of Roman coins found near the harbour.",
    "Vaccines train the immune system to recognise a pathogen it has not met.",
]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Keep results the same on every machine, and leave the other cores alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """Eight sentences on eight subjects."""
    return list(SENTENCES)


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder: random Llama, hidden 32, 2 layers, tied embeddings, byte-level BPE.

    As with SmolLM2, the tokenizer adds no BOS of its own. Treat the folder as read-only.
    """
    folder = tmp_path_factory.mktemp("backbone") / "tiny-llama"
    tokenizer = _tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=2048,
                # Wider than usual: an untrained model must still tell one text from another.
                initializer_range=0.2,
                tie_word_embeddings=True,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point ``LLM2COMP_CACHE`` at an empty folder for one test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("LLM2COMP_CACHE", str(folder))
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<pad>", "<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
