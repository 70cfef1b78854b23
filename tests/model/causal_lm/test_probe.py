"""The probe refuses a model for each property that it lacks, and names the property."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedModel,
    StableLmConfig,
)

from llm2comp.errors import UserError
from llm2comp.model.attention import configure_attention
from llm2comp.model.causal_lm.dropout import dropout_settings, remove_dropout
from llm2comp.model.causal_lm.parts import Head, body_of, positions_of, token_table
from llm2comp.model.causal_lm.probe import Attention, _watched_attention, probe, probe_encoder

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def build(config: Any) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    configure_attention(model)
    return model.train(False)


@pytest.fixture
def model(tiny_backbone: Path) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(tiny_backbone)
    configure_attention(model)
    return model.train(False)


def test_a_llama_passes_and_all_its_layers_attend(model: PreTrainedModel) -> None:
    assert probe(model, "tiny") == Attention(layers=2, attending=2)


def test_the_probe_changes_nothing(model: PreTrainedModel) -> None:
    settings, weights = model.config.to_dict(), {n: p.clone() for n, p in model.named_parameters()}
    random = torch.get_rng_state()
    probe(model, "tiny")
    assert model.config.to_dict() == settings
    assert not model.training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())
    assert not any(module._forward_hooks for module in model.modules())


def break_embeddings(model: PreTrainedModel) -> None:
    forward = body_of(model).forward

    def scaled(input_ids: Tensor | None = None, inputs_embeds: Any = None, **options: Any) -> Any:
        if inputs_embeds is not None:
            return forward(inputs_embeds=1.5 * inputs_embeds, **options)
        return forward(input_ids, **options)

    body_of(model).forward = scaled


def break_training(model: PreTrainedModel) -> None:
    body_of(model).layers[0].mlp.act_fn = nn.Sequential(nn.SiLU(), nn.Dropout(0.3)).train(False)


def break_logits(model: PreTrainedModel) -> None:
    forward = model.forward

    def scaled(*args: Any, **options: Any) -> Any:
        output = forward(*args, **options)
        output.logits = 1.1 * output.logits
        return output

    model.forward = scaled


def break_padding(model: PreTrainedModel) -> None:
    forward = body_of(model).forward

    def unmasked(*args: Any, attention_mask: Any = None, **options: Any) -> Any:
        return forward(*args, **options)

    body_of(model).forward = unmasked


def break_causality(model: PreTrainedModel) -> None:
    body = body_of(model)
    body.config.is_causal = False


def close_one_layer(model: PreTrainedModel) -> None:
    layer = body_of(model).layers[1].self_attn
    forward = layer.forward

    def causal(hidden_states: Tensor, attention_mask: Any = None, **options: Any) -> Any:
        length = hidden_states.shape[1]
        mask = torch.full((1, 1, length, length), -1e9).triu(1)
        mask = mask if attention_mask is None else mask + attention_mask
        return forward(hidden_states=hidden_states, attention_mask=mask, **options)

    layer.forward = causal


def raise_an_error(model: PreTrainedModel) -> None:
    def broken(*args: Any, **options: Any) -> Any:
        raise RuntimeError("two lines\nof text")

    body_of(model).forward = broken


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (break_embeddings, "token embeddings give other states than token ids (by "),
        (break_training, "in training its states are others, as if by dropout (by "),
        (break_logits, "its head does not give the model's own logits (by "),
        (break_padding, "states of a short text with padding on the left in a batch are not "),
        (break_causality, "its attention is not causal (a change of the last token moves "),
        (close_one_layer, "the attention of layers.1.self_attn is not bidirectional"),
        (raise_an_error, "it fails when it reads a text (RuntimeError: two lines of text)"),
    ],
)
def test_a_model_without_a_property_is_refused(
    model: PreTrainedModel, change: Callable[[PreTrainedModel], None], message: str
) -> None:
    change(model)
    with pytest.raises(UserError) as error:
        probe(model, "tiny")
    assert str(error.value).startswith("backbone 'tiny' is refused: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_another_way_to_the_logits_is_refused(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Head, "forward", lambda self, states: 1.1 * self.model.lm_head(states))
    with pytest.raises(UserError, match="its head does not give the model's own logits"):
        probe(model, "tiny")


@pytest.mark.parametrize(
    "config",
    [
        CohereConfig(**SIZES, logit_scale=0.1),
        GraniteConfig(**SIZES, logits_scaling=7.0, embedding_multiplier=3.0),
        Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=2.0, sliding_window=8),
        PhiConfig(**SIZES),
        OPTConfig(
            vocab_size=300, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4
        ),
        GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2),
    ],
    ids=lambda config: config.model_type,
)
def test_the_head_is_the_models_own_way_to_the_logits(config: Any) -> None:
    """Scaled, capped and biased logits: `lm_head` alone gives others."""
    remove_dropout(config)
    model = build(config)
    with torch.no_grad():
        for parameter in model.parameters():  # biases begin as zero
            parameter += 0.02 * torch.randn(parameter.shape)
        ids = torch.randint(300, (1, 9), generator=torch.Generator().manual_seed(0))
        states = body_of(model)(ids).last_hidden_state[0]
        assert torch.allclose(Head(model)(states), model(ids).logits[0], atol=1e-5)
    assert probe(model, config.model_type, bidirectional=False).layers == 2


def test_the_head_shares_its_weights_and_leaves_the_model_as_it_was(
    model: PreTrainedModel,
) -> None:
    head = Head(model)
    assert model.model is body_of(model)
    assert {p.data_ptr() for p in head.parameters()} == {model.lm_head.weight.data_ptr()}
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
        states = torch.randn(3, 32)
        assert torch.equal(head(states), model.lm_head(states))


def test_a_window_stays_and_longer_texts_pass() -> None:
    """The window is that of the original, whose states for long texts depend on it."""
    model = build(MistralConfig(**SIZES, sliding_window=8))
    probe(model, "mistral")
    assert model.config.sliding_window == 8


def test_windows_are_short_while_a_model_is_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(MistralConfig(**SIZES, sliding_window=4096))
    seen: list[int] = []
    model.model.register_forward_pre_hook(lambda *_: seen.append(model.config.sliding_window))
    probe(model, "mistral")
    assert max(seen) < 14
    assert model.config.sliding_window == 4096


def test_attention_that_hardly_moves_in_half_precision_is_bidirectional() -> None:
    """Every token gives about the same value, as in the first layer of a trained SmolLM2."""
    model = build(LlamaConfig(**SIZES, attention_bias=True)).to(torch.bfloat16)
    attention = model.model.layers[0].self_attn
    attention.v_proj.bias.data.fill_(8.0)
    with torch.no_grad(), _watched_attention(model.model) as reached:
        model.model(torch.arange(100, 114)[None], is_causal=False)
    assert 0.01 < min(reached.values()) < 0.05
    probe(model, "tiny")


def test_a_hybrid_says_how_many_layers_attend() -> None:
    config = Lfm2Config(
        **SIZES | {"num_hidden_layers": 3}, layer_types=["conv", "full_attention", "conv"]
    )
    assert probe(build(config), "lfm2") == Attention(layers=3, attending=1)


def test_a_later_stage_that_opens_the_attention_is_refused() -> None:
    """Stablelm ignores `is_causal`. Stage 1 may be causal and a later stage bidirectional."""
    body = body_of(build(StableLmConfig(**SIZES)))
    assert probe_encoder(body, "stablelm").attending == 2
    body.config.is_causal = False
    with pytest.raises(UserError, match="^encoder 'stablelm' is refused: "):
        probe_encoder(body, "stablelm")


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(attn_pdrop=0.1, resid_pdrop=0.2, embd_pdrop=0.3),
        OPTConfig(dropout=0.1, attention_dropout=0.2, layerdrop=0.3),
        MistralConfig(attention_dropout=0.4),
    ],
    ids=lambda config: config.model_type,
)
def test_no_dropout_is_left_but_that_of_the_attention(config: Any) -> None:
    settings = dropout_settings(config, 0.25)
    on = {name for name, value in settings.items() if value}
    assert on == {"attn_pdrop" if config.model_type == "gpt2" else "attention_dropout"}
    assert all(settings[name] == 0.25 for name in on)
    remove_dropout(config)
    assert not any(getattr(config, name) for name in settings)


def test_the_token_table_is_what_the_body_reads_by(model: PreTrainedModel) -> None:
    assert token_table(model) is token_table(body_of(model))


def longrope(kind: str) -> dict[str, Any]:
    factors = [1.0] * 4
    return {
        "rope_type": kind,
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 32,
        "factor": 4.0,
        "short_factor": factors,
        "long_factor": [3.0 * factor for factor in factors],
    }


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        (GPT2Config(n_positions=40), 40),
        (MistralConfig(**SIZES, max_position_embeddings=128), 128),
        (
            MistralConfig(
                **SIZES, max_position_embeddings=128, rope_parameters=longrope("longrope")
            ),
            32,
        ),
        (
            MistralConfig(**SIZES, max_position_embeddings=128, rope_parameters=longrope("yarn")),
            128,
        ),
    ],
)
def test_texts_are_as_long_as_their_states_do_not_depend_on_the_batch(
    config: Any, positions: int
) -> None:
    """With longrope, one long text of a batch changes the rotary embeddings of all of them."""
    assert positions_of(config) == positions


def test_longrope_changes_short_texts_beside_a_long_one() -> None:
    config = MistralConfig(
        **SIZES, max_position_embeddings=128, rope_parameters=longrope("longrope")
    )
    body = body_of(build(config))
    with torch.no_grad():
        short = torch.randint(3, 300, (1, 20), generator=torch.Generator().manual_seed(0))
        alone = body(short).last_hidden_state[0]
        for width, same in ((positions_of(config), True), (60, False)):
            ids = torch.zeros(2, width, dtype=torch.long)
            ids[0, :20], ids[1] = short, 7
            mask = torch.ones_like(ids)
            mask[0, 20:] = 0
            beside = body(ids, attention_mask=mask).last_hidden_state[0, :20]
            assert torch.allclose(alone, beside, atol=1e-4) is same
