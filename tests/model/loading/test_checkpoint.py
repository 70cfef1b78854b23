"""A checkpoint is read whole and as it was trained, or refused in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from llm2comp.errors import UserError
from llm2comp.model.backbone import load_backbone
from llm2comp.model.causal_lm.parts import body_of
from llm2comp.model.memory_tokens import add_memory_tokens
from llm2comp.recipe_parts import Memory

WEIGHTS = "model.safetensors"
SIZE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


@pytest.fixture
def folder(tiny_backbone: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_backbone, tmp_path / "model"))


def configure(folder: Path, **settings: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def refused(folder: Path, match: str, **options: Any) -> None:
    with pytest.raises(UserError, match=match) as error:
        load_backbone(str(folder), **options)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


def save_beside_tokenizer(model: PreTrainedModel, tiny_backbone: Path, folder: Path) -> Path:
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_backbone).save_pretrained(folder)
    return folder


DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be loaded"),
        (lambda f: configure(f, model_type="nonsense"), "cannot be loaded"),
        (lambda f: (f / WEIGHTS).unlink(), "cannot be loaded: .*no file named model.safetensors"),
        (lambda f: (f / WEIGHTS).write_bytes(b""), "cannot be loaded"),
        (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:9000]), "cannot be"),
        (lambda f: change_weights(f, lambda w: w.pop(DOWN)), f"lacks weights, such as {DOWN}"),
        (lambda f: configure(f, num_hidden_layers=1), r"more than its config.json .*layers\.1\."),
        (lambda f: configure(f, num_hidden_layers=3), r"lacks weights, such as model\.layers\.2\."),
        (lambda f: configure(f, intermediate_size=32), r"another shape .*layers\.0\.mlp"),
        (
            lambda f: configure(f, tie_word_embeddings=False),
            "lacks weights, such as lm_head.weight",
        ),
        (lambda f: configure(f, model_type="qwen3"), r"lacks weights, such as .*k_norm"),
        (lambda f: configure(f, quantization_config={"quant_method": "awq"}), "quantised .awq"),
        (lambda f: [file.unlink() for file in f.glob("token*")], "cannot be loaded"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused(
    folder: Path, damage: Callable[[Path], object], match: str
) -> None:
    damage(folder)
    refused(folder, match)


def test_a_norm_that_the_architecture_does_not_know_is_refused(folder: Path) -> None:
    name = "model.layers.0.self_attn.q_norm.weight"
    change_weights(folder, lambda weights: weights.update({name: torch.ones(8)}))
    refused(folder, f"more than its config.json says: weights, such as {name}")


def test_constants_of_old_checkpoints_are_left_out(folder: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change_weights(folder, lambda weights: weights.update({name: torch.ones(4)}))
    load_backbone(str(folder))


def test_constants_of_gpt_neo_are_left_out(tiny_backbone: Path, tmp_path: Path) -> None:
    size = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64}
    config = GPTNeoConfig(vocab_size=300, attention_types=[[["global", "local"], 1]], **size)
    neo = save_beside_tokenizer(GPTNeoForCausalLM(config), tiny_backbone, tmp_path / "neo")
    constants = {
        f"transformer.h.0.attn.attention.{name}": torch.ones(4) for name in ("bias", "masked_bias")
    }
    change_weights(neo, lambda weights: weights.update(constants))
    load_backbone(str(neo), bidirectional=False)


def test_a_head_of_its_own_stays_where_the_configuration_says_that_it_is_tied(
    folder: Path,
) -> None:
    """As configurations of multimodal models do by default."""
    ids = torch.arange(20, 40)[None]
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(folder).eval()(ids).logits
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(content | {"tie_word_embeddings": True}))
        model, tokenizer = load_backbone(str(folder))
        add_memory_tokens(model, tokenizer, Memory(tokens=4), 0)
        torch.testing.assert_close(model(ids).logits[..., : expected.shape[-1]], expected)


def test_an_encoder_decoder_and_an_encoder_are_refused(tiny_backbone: Path, tmp_path: Path) -> None:
    t5 = T5ForConditionalGeneration(
        T5Config(vocab_size=300, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )
    refused(save_beside_tokenizer(t5, tiny_backbone, tmp_path / "t5"), r"encoder-decoder \(t5\)")
    bert = BertForMaskedLM(BertConfig(vocab_size=300, **SIZE))
    refused(save_beside_tokenizer(bert, tiny_backbone, tmp_path / "bert"), "is refused")


def test_the_language_model_of_a_multimodal_model_is_taken(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    text = SIZE | {"vocab_size": 300, "head_dim": 8, "num_key_value_heads": 2, "sliding_window": 8}
    eyes = {**SIZE, "image_size": 28, "patch_size": 14}
    whole = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=eyes))
    save_beside_tokenizer(whole.eval(), tiny_backbone, tmp_path / "gemma")
    model, _ = load_backbone(str(tmp_path / "gemma"), bidirectional=False)
    assert model.config.model_type == "gemma3_text"
    ids = torch.arange(20, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, whole(ids).logits)
        body_of(model).save_pretrained(tmp_path / "saved")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
        torch.testing.assert_close(again(ids).logits, whole(ids).logits)
