"""A GGUF file gives the weights that were written into it, or one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llm2comp.errors import UserError
from llm2comp.model import backbone
from llm2comp.model.backbone import load_backbone

SIZE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.2,
}


def random_model(architecture: str, vocabulary: int) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **SIZE, vocab_size=vocabulary)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # norms and biases too
    return model


def write_gguf(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, file: Path, **more: Any
) -> Path:
    """Write a model as llama.cpp's converter does."""
    config, architecture = model.config, model.config.model_type
    writer = gguf.GGUFWriter(file, more.pop("architecture", architecture))
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    for key, value in more.pop("floats", {}).items():
        writer.add_float32(f"{architecture}.{key}", value)
    if tokenizer is not None:
        vocabulary = tokenizer.get_vocab()
        names = sorted(vocabulary, key=vocabulary.__getitem__)
        special = set(tokenizer.all_special_tokens)
        merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(names)
        writer.add_token_types([3 if name in special else 1 for name in names])
        writer.add_token_merges([" ".join(pair) for pair in merges])
        writer.add_bos_token_id(tokenizer.bos_token_id)
        writer.add_eos_token_id(tokenizer.eos_token_id)
        writer.add_pad_token_id(tokenizer.pad_token_id)
    tied = config.tie_word_embeddings
    weights = {n: t for n, t in model.state_dict().items() if not (tied and "lm_head" in n)}
    names_of = gguf.get_tensor_name_map(
        next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture),
        config.num_hidden_layers,
    )
    for name, tensor in weights.items():
        if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = len(tensor) // config.head_dim
            tensor = tensor.view(heads, 2, -1, config.hidden_size).transpose(1, 2)
            tensor = tensor.reshape(-1, config.hidden_size)
        if architecture == "gemma2" and "norm" in name:
            tensor = 1 + tensor
        kept = names_of.get_name(name, try_suffixes=(".weight", ".bias"))
        if kept not in more.get("without", ()):
            writer.add_tensor(kept, tensor.contiguous().numpy())
    for name in more.get("tensors", ()):
        writer.add_tensor(name, np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture
def tokenizer(tiny_backbone: Path, empty_cache: Path) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny_backbone)
    return tokenizer


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2"])
def test_a_converted_model_has_the_logits_of_the_original(
    architecture: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    original = random_model(architecture, len(tokenizer))
    file = write_gguf(original, tokenizer, tmp_path / "tiny.gguf")
    model, read = load_backbone(str(file), bidirectional=False)
    text = "Whales are mammals: they breathe air."
    plain = {"add_special_tokens": False, "return_tensors": "pt"}
    ids = tokenizer(text, **plain)["input_ids"]
    if architecture != "gemma2":  # transformers makes a tokenizer of another kind for it
        assert torch.equal(read(text, **plain)["input_ids"], ids)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, original(ids).logits, atol=1e-4, rtol=1e-4)


def test_weights_are_dequantised_once(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From then on they are in the cache, for files of the same content."""
    file = write_gguf(random_model("llama", len(tokenizer)), tokenizer, tmp_path / "tiny.gguf")
    first, _ = load_backbone(str(file))
    with monkeypatch.context() as patch:
        patch.setattr(backbone, "convert_gguf", lambda *_: pytest.fail("it converts again"))
        again, _ = load_backbone(str(file))
    weights = again.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in first.state_dict().items())
    write_gguf(random_model("qwen2", len(tokenizer)), tokenizer, file)
    other, _ = load_backbone(str(file))
    assert other.config.model_type == "qwen2"


CUT = 3000


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda f: f.write_bytes(b""), "not a GGUF file"),
        (lambda f: f.write_bytes(b"PK" + f.read_bytes()), "not a GGUF file"),
        (lambda f: f.write_bytes(f.read_bytes()[:CUT]), "damaged or cut off"),
        (lambda f: f.write_bytes(f.read_bytes()[:-CUT]), "damaged or cut off"),
    ],
)
def test_a_file_that_is_not_whole_leaves_nothing_behind(
    damage: Callable[[Path], object],
    match: str,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    empty_cache: Path,
) -> None:
    file = write_gguf(random_model("llama", len(tokenizer)), tokenizer, tmp_path / "tiny.gguf")
    damage(file)
    with pytest.raises(UserError, match=match) as error:
        load_backbone(str(file))
    assert "\n" not in str(error.value)
    assert not list(empty_cache.rglob("*.*"))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"architecture": "plamo"}, "architecture plamo is not supported"),
        ({"without": ("blk.1.ffn_down.weight",)}, "lacks weights, such as .*down_proj"),
        ({"tensors": ("rope_freqs.weight",)}, "leaves out 'rope_freqs.weight'"),
        ({"floats": {"rope.scaling.factor": 8.0}}, "leaves out 'rope.scaling.factor'"),
        ({"tokenizer": None}, "holds no tokenizer"),
    ],
)
def test_a_file_that_transformers_would_read_wrongly_is_refused(
    options: dict[str, Any],
    match: str,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    empty_cache: Path,
) -> None:
    model = random_model("llama", len(tokenizer))
    write_gguf(model, **({"tokenizer": tokenizer, "file": tmp_path / "tiny.gguf"} | options))
    with pytest.raises(UserError, match=match):
        load_backbone(str(tmp_path / "tiny.gguf"))
    assert not list(empty_cache.rglob("*.*"))
