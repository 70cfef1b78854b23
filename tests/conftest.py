"""Small fixtures for all tests: a random Llama, a recipe of three stages, evaluation sets."""

import gc
import json
import logging
import os
import random
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

# This must come before the client of the hub is imported. No test may wait for a network timeout.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llm2comp.data import catalog
from llm2comp.evaluation.tasks import r8, trec
from llm2comp.utils import hardware

Rows = list[dict[str, str]]

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


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Escape lone surrogates that a test printed: a parallel worker could not report, and stops."""
    return _escaped((yield))


def _escaped(part: Any) -> Any:
    if isinstance(part, str):
        return part.encode(errors="backslashreplace").decode()
    if isinstance(part, dict):
        return {key: _escaped(value) for key, value in part.items()}
    if isinstance(part, list | tuple):
        return type(part)(map(_escaped, part))
    return part


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread, so that results are the same on every machine and other cores stay free."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def _cheap_garbage_collection() -> Iterator[None]:
    """Take what is left after each module out of the sight of the garbage collector.

    A stage collects garbage before it loads the next model. In a session that has imported and
    compiled everything, each collection would take seconds.
    """
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _log_as_it_was() -> Iterator[None]:
    """Undo what a command or a test does to the log: others would see more messages, or none."""
    ours = [logging.getLogger("llm2comp")]
    ours += [
        logging.getLogger(name)
        for name in logging.root.manager.loggerDict
        if name.startswith("llm2comp.")
    ]
    before = [(logger, logger.level, logger.handlers[:], logger.propagate) for logger in ours]
    yield
    for logger, level, handlers, propagate in before:
        logger.setLevel(level)
        logger.handlers, logger.propagate = handlers, propagate


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """Eight sentences on eight subjects."""
    return list(SENTENCES)


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder with a random Llama: 2 layers of width 32, tied embeddings.

    The tokenizer is BPE on bytes. As with Llama 3, it puts BOS before every text. Tests must not
    write to the folder.
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
                # With the default of 0.02, an untrained model gives all texts about the same
                # embedding.
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


@pytest.fixture(params=[True, False], ids=["native bfloat16", "no native bfloat16"])
def either_processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Run a test twice: as if the processor had native bfloat16, and as if it had not."""
    native: bool = request.param
    flags = frozenset({"avx2", "avx512_bf16"} if native else {"avx2"})
    monkeypatch.setattr(hardware, "_processor_flags", lambda: flags)
    return native


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set `LLM2COMP_CACHE` to an empty folder for one test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("LLM2COMP_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def tiny_recipe(
    tiny_backbone: Path, sentences: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A recipe of three short stages with the tiny backbone and local files.

    Tests must not write to its folder.
    """
    folder = tmp_path_factory.mktemp("recipe")
    generator = random.Random(0)
    words = " ".join(sentences).split()
    texts = [" ".join(generator.choices(words, k=30)) for _ in range(200)]
    (folder / "texts.txt").write_text("\n".join(texts) + "\n")
    pairs = zip(texts[::2], texts[1::2], strict=True)
    lines = [json.dumps({"anchor": anchor, "positive": positive}) for anchor, positive in pairs]
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    scored = [
        json.dumps({"anchor": texts[i], "positive": texts[i + 1], "score": i % 6})
        for i in range(100)
    ]
    (folder / "scored.jsonl").write_text("\n".join(scored) + "\n")
    common = {"lora": {"r": 4}, "learning_rate": 1e-2, "save_steps": 4, "log_steps": 2}
    recipe = {
        "name": "tiny",
        "backbone": {"name": str(tiny_backbone)},
        "memory": {"tokens": 4},
        "stages": [
            {
                "stage": "pretext",
                "data": [{"source": str(folder / "texts.txt")}],
                "passages": {"min_chars": 10, "max_tokens": 60, "crop": True},
                "split": {"low": 20, "high": 30, "start": 25, "ramp_steps": 10},
                "steps": 20,
                "batch_size": 4,
                "memory_learning_rate": 2e-2,
                "eval_steps": 10,
                "eval_passages": 8,
                **common,
            },
            {
                "stage": "unsupervised",
                "data": [{"source": str(folder / "texts.txt")}],
                "steps": 12,
                "batch_size": 8,
                **common,
            },
            {
                "stage": "supervised",
                "data": [
                    {"source": str(folder / name)} for name in ("pairs.jsonl", "scored.jsonl")
                ],
                "steps": 12,
                "batch_size": 8,
                "mini_batch_size": 4,
                "memory_learning_rate": 1e-3,
                **common,
            },
        ],
        "evaluation": {"tasks": []},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture
def sets(monkeypatch: pytest.MonkeyPatch, sentences: list[str]) -> dict[str, Rows]:
    """Replace the rows of packaged sources by small sets, and return them by name."""
    generator = random.Random(0)
    stsb = [
        {
            "split": split,
            "file": origin,
            "score": f"{generator.uniform(0, 5):.3f}",
            "sentence1": generator.choice(sentences),
            "sentence2": " ".join(generator.sample(sentences, 2)),
        }
        for split in ("train", "dev", "test")
        for origin in ("MSRvid", "track5.en-en")
        for _ in range(6)
    ]
    # The contexts differ much, because rounding would decide the rank of similar ones.
    contexts = [" ".join(generator.choices(sentences, k=7)) for _ in range(48)]
    squad = [
        {
            "id": f"{index}-{number}",
            "question": f"{' '.join(context.split()[5 * number : 5 * number + 5])}?",
            "context": context,
            "answers": f"{context.split()[0]}\n{' '.join(context.split()[:2])}",
        }
        for index, context in enumerate(contexts)
        for number in range(2)
    ]
    topics = [sentences[i : i + 2] for i in range(0, 8, 2)]
    labelled = [
        {
            "text": " ".join(generator.choices(" ".join(topic).split(), k=40)),
            "label": f"topic {index}",
        }
        for index, topic in enumerate(topics)
        for _ in range(30)
    ]
    generator.shuffle(labelled)
    clauses = [
        {
            "question": f"{generator.choice(sentences)}?",
            "context": " ".join(generator.choices(sentences, k=3)),
            "label": generator.choice(["True", "False"]),
        }
        for _ in range(40)
    ]
    rows = {
        "stsb": stsb,
        "squad-dev": squad,
        "20newsgroups": labelled,
        "pubmed-journals": labelled[:50],
        "boolq-dev": squad[:60],
        "news-dev": squad[60:],
        "pubmed-journals-dev": labelled[50:],
        "trec": labelled,
        "r8": [row | {"split": generator.choice(["train", "test"])} for row in labelled],
        "privacy-policy": clauses,
    }
    monkeypatch.setattr(catalog, "rows", lambda name: iter(rows[name]))
    # The tasks know how many rows the real sets have. These are the numbers for the small sets.
    monkeypatch.setattr(trec, "TEST", 40)
    monkeypatch.setattr(r8, "QUICK_TEST", 20)
    return rows


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
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
