"""Which layers get a LoRA, in models of many architectures: random, and small."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedModel

from llm2comp import recipe
from llm2comp.errors import UserError
from llm2comp.model.lineage import StageRecord
from llm2comp.model.lora import add_adapter, trainable_parameters
from llm2comp.model.lora_targets import adapted_layers, target_modules

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "own-backbone.md"
LLAMA = ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
NEOX = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
OPT = ["v_proj", "q_proj", "out_proj", "fc1", "fc2"]
ATTENTION = ["q_proj", "v_proj", "o_proj"]
PLAIN = [*ATTENTION, "up_proj", "down_proj"]
GLM = [*ATTENTION, "gate_up_proj", "down_proj"]
GPT = ["c_attn", "c_proj", "c_fc"]
MLA = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]
LFM2 = ["in_proj", "out_proj", "w1", "w3", "w2", "q_proj", "v_proj"]
TARGETS = {
    **dict.fromkeys(["llama", "mistral", "ministral", "qwen2", "qwen3", "smollm3"], LLAMA),
    **dict.fromkeys(["gemma", "gemma2", "gemma3_text", "olmo", "olmo2", "olmo3"], LLAMA),
    **dict.fromkeys(["granite", "cohere", "cohere2", "exaone4", "stablelm", "ernie4_5"], LLAMA),
    **dict.fromkeys(["nemotron", "arcee", "apertus"], PLAIN),
    **dict.fromkeys(["glm", "glm4"], GLM),
    "phi3": ["o_proj", "qkv_proj", "gate_up_proj", "down_proj"],
    "phi": ["q_proj", "v_proj", "dense", "fc1", "fc2"],
    "starcoder2": [*ATTENTION, "c_fc", "c_proj"],
    **dict.fromkeys(["gpt2", "gpt_bigcode"], GPT),
    **dict.fromkeys(["gpt_neox", "falcon", "bloom", "persimmon"], NEOX),
    **dict.fromkeys(["opt", "xglm", "biogpt"], OPT),
    "gptj": ["v_proj", "q_proj", "out_proj", "fc_in", "fc_out"],
    "mpt": ["Wqkv", "out_proj", "up_proj", "down_proj"],
    **dict.fromkeys(["lfm2", "lfm2_moe"], LFM2),
    "falcon_h1": ["gate_proj", "up_proj", "down_proj", *ATTENTION],
    **dict.fromkeys(["mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "olmoe", "phimoe"], ATTENTION),
    "glm4_moe": ATTENTION,
    "jamba": ATTENTION,
    "deepseek_v3": MLA,
    "qwen3_next": ["in_proj_qkvz", "in_proj_ba", "out_proj", *ATTENTION],
}
"""The default, by architecture."""
EXPERTS = {
    *("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "olmoe", "phimoe", "glm4_moe", "jamba"),
    *("deepseek_v3", "qwen3_next", "lfm2_moe"),
}
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}
LAYER_TYPES = {"layer_types": ["conv", "full_attention"] * 2}
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(["gpt2", "gpt_bigcode"], GPT2),
    "gptj": GPT2 | {"rotary_dim": 4},
    "bloom": {"n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 16},
    "xglm": {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4},
    "lfm2": LAYER_TYPES | {"block_auto_adjust_ff_dim": False},
    "lfm2_moe": LAYER_TYPES | {"num_dense_layers": 2},
    "falcon_h1": MAMBA | {"mamba_d_ssm": 32},
    "jamba": {"num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1},
    "qwen2_moe": {"shared_expert_intermediate_size": 24},
    "glm4_moe": {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "deepseek_v3": {
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "qwen3_next": {
        "shared_expert_intermediate_size": 24,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"] * 2,
    },
}
"""Settings that an architecture has beside or instead of those of `SMALL`."""
K = 2


def body(architecture: str) -> PreTrainedModel:
    config = CONFIG_MAPPING[architecture]
    known = set(config().to_dict()) | set(config.attribute_map)
    settings = {name: value for name, value in SMALL.items() if name in known}
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModel.from_config(config(**settings | OWN.get(architecture, {})))
    return model.eval()


def shape(architecture: str) -> PreTrainedModel:
    """Return a model without weights."""
    with torch.device("meta"):
        return body(architecture)


@pytest.mark.parametrize("architecture", TARGETS)
def test_the_default_is_attention_and_mlp_without_keys_routers_and_experts(
    architecture: str,
) -> None:
    model = shape(architecture)
    names = target_modules(model, None)
    assert names == TARGETS[architecture]
    adapted = adapted_layers(add_adapter(model, recipe.Lora(), K))
    assert list(adapted.blocks) == names
    assert ("experts.down_proj" in adapted.left_out) == (architecture in EXPERTS)
    assert not {"gate", "router", "lm_head", "embed_tokens", "project_in"} & set(adapted.blocks)


@pytest.mark.parametrize("architecture", TARGETS)
def test_every_block_is_adapted(architecture: str) -> None:
    adapted = add_adapter(shape(architecture), recipe.Lora(), K).get_base_model()
    blocks = {
        re.match(r"\D*\d+", name)[0]
        for name, module in adapted.named_modules()
        if isinstance(module, LoraLayer)
    }
    assert len(blocks) == adapted.config.num_hidden_layers or architecture == "jamba"


def test_the_guide_has_the_default_of_every_architecture() -> None:
    rows = re.findall(r"^\| (`.*`) \| (`.*`) \|$", GUIDE.read_text(), flags=re.MULTILINE)
    told = {
        architecture: re.findall(r"`(\w+)`", names)
        for architectures, names in rows
        for architecture in re.findall(r"`(\w+)`", architectures)
    }
    assert told == TARGETS


def states(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([[1, 30, 40, 50, 62, 63]])).last_hidden_state


@pytest.mark.parametrize(
    "architecture",
    ["gpt2", "falcon", "phi3", "gpt_neox", "bloom", "opt", "starcoder2", "lfm2", "qwen3_next"],
)
def test_each_adapted_layer_trains_and_is_merged(architecture: str, tmp_path: Path) -> None:
    adapted = add_adapter(body(architecture), recipe.Lora(r=4, dropout=0.0), K).eval()
    ids = torch.tensor([[1, 30, 40, 50, 62, 63]])
    adapted(ids).last_hidden_state.square().sum().backward()
    for name, parameter in trainable_parameters(adapted).items():
        assert "lora_A" in name or parameter.grad.abs().sum() > 0, name  # B is 0 at first
    with torch.no_grad():
        for parameter in trainable_parameters(adapted).values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    expected = states(adapted)
    assert not torch.allclose(expected, states(body(architecture)), atol=1e-2)
    adapted.save_pretrained(str(tmp_path), save_embedding_layers=False)
    stock = PeftModel.from_pretrained(body(architecture), str(tmp_path))
    torch.testing.assert_close(states(stock.merge_and_unload()), expected, atol=1e-4, rtol=1e-4)


def test_a_name_that_matches_nothing_is_refused_with_the_names_of_the_model() -> None:
    with pytest.raises(UserError, match=r"'q_proj' is no .* are o_proj, qkv_proj, gate_up_proj, d"):
        add_adapter(shape("phi3"), recipe.Lora(target_modules=LLAMA), K)


@pytest.mark.parametrize("name", ["embed_tokens", "mlp", "norm", "lm_head", "experts.down_proj"])
def test_only_linear_layers_can_be_named(name: str) -> None:
    with pytest.raises(UserError, match=f"'{name}' is no linear layer of this model") as caught:
        target_modules(shape("mixtral"), [name])
    assert "\n" not in str(caught.value)


def test_a_model_without_attention_needs_names() -> None:
    with pytest.raises(UserError, match="name some of in_proj, x_proj, dt_proj, out_proj"):
        target_modules(shape("mamba"), None)


def test_what_peft_refuses_is_one_line() -> None:
    with pytest.raises(UserError, match="cannot adapt in_proj, out_proj: .*incompatible") as caught:
        add_adapter(shape("mamba"), recipe.Lora(target_modules=["in_proj", "out_proj"]), 0)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(
    not find_spec("peft.utils.transformers_weight_conversion"),
    reason="peft takes them from 0.19 on",
)
@pytest.mark.parametrize("dropout", [0.0, 0.05])
def test_names_that_peft_takes_for_experts_are_refused(dropout: float) -> None:
    """Without dropout PEFT would adapt the weights of all experts, and not the shared ones."""
    lora = recipe.Lora(target_modules=LLAMA, dropout=dropout)
    with pytest.raises(UserError, match=r"lora\.target_modules: .*down_proj"):
        add_adapter(shape("qwen3_next"), lora, K)


def test_a_name_may_be_part_of_a_path() -> None:
    adapted = add_adapter(shape("lfm2"), recipe.Lora(target_modules=["self_attn.out_proj"]), K)
    layers = adapted_layers(adapted)
    assert layers.blocks == {"self_attn.out_proj": 2}
    assert "conv.out_proj" in layers.left_out


def test_the_log_says_what_is_adapted_in_some_blocks_and_what_is_not() -> None:
    layers = adapted_layers(add_adapter(shape("lfm2"), recipe.Lora(), K))
    assert str(layers) == (
        "LoRA on in_proj (in 2 of 4 blocks), out_proj, w1, w3, w2, q_proj (in 2 of 4 blocks), "
        "v_proj (in 2 of 4 blocks); without LoRA: k_proj"
    )


def test_a_record_has_the_names_that_were_found() -> None:
    adapted = adapted_layers(add_adapter(shape("mixtral"), recipe.Lora(), K))
    stage = recipe.Pretext.model_validate(
        {"data": [{"source": "x"}], "steps": 1, "batch_size": 1, "learning_rate": 1}
    )
    record = StageRecord.of(stage, causal=True, lora=adapted.record)
    assert record.lora == {
        "r": 16,
        "alpha": 32,
        "dropout": 0.05,
        "target_modules": ATTENTION,
        "left_out": ["k_proj", "experts.gate_up_proj", "experts.down_proj"],
    }
