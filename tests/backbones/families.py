"""Tiny random language models, one per architecture that people use.

Each has every kind of layer that its architecture has, windows shorter than the texts of the tests,
scalings that are not neutral, and dropouts that are not zero. A mistake in any of these then
changes a number that a test compares.
"""

from typing import Any

from tiny_model import SIZES, Family

STAYS_CAUSAL = "attention is not bidirectional"
WINDOW = 8
"""Tokens that a layer with a sliding window sees; the texts of the tests are longer."""
SLIDING, FULL = "sliding_attention", "full_attention"
ROPES = {
    SLIDING: {"rope_type": "default", "rope_theta": 1e4},
    FULL: {"rope_type": "default", "rope_theta": 1e6},
}
_GPT2_SIZES: dict[str, Any] = {
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 512,
    "initializer_range": 0.2,
    "resid_pdrop": 0.2,
    "embd_pdrop": 0.2,
    "attn_pdrop": 0.2,
}


FAMILIES = [
    Family("llama", {"tie_word_embeddings": True, "attention_bias": True}, core=True),
    Family("mistral", {"sliding_window": WINDOW}, core=True),
    Family("ministral", {"sliding_window": WINDOW, "layer_types": [SLIDING, FULL]}),
    Family("qwen2", {"tie_word_embeddings": True}, spare_rows=7, core=True),
    Family(
        "qwen2",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
        variant="sliding",
        spare_rows=7,
        remark="with `use_sliding_window`",
    ),
    Family("qwen3", {"tie_word_embeddings": True}),
    Family("gemma", {"tie_word_embeddings": True}),
    Family(
        "gemma2",
        {
            "tie_word_embeddings": True,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 4,
            "final_logit_softcapping": 2.0,
            "attn_logit_softcapping": 2.0,
        },
        core=True,
    ),
    Family(
        "gemma3_text",
        {
            "num_hidden_layers": 6,
            "tie_word_embeddings": True,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 4,
            "rope_parameters": ROPES,
        },
        core=True,
    ),
    Family("phi3", {"resid_pdrop": 0.2, "embd_pdrop": 0.2, "sliding_window": WINDOW}),
    Family("phi", {"resid_pdrop": 0.2, "embd_pdrop": 0.2, "num_key_value_heads": 4}, core=True),
    Family("olmo2"),
    Family("olmo3", {"num_hidden_layers": 4, "sliding_window": WINDOW}),
    Family("smollm3", {"num_hidden_layers": 4, "tie_word_embeddings": True}),
    Family(
        "granite",
        {
            "tie_word_embeddings": True,
            "embedding_multiplier": 3.0,
            "logits_scaling": 4.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.2,
        },
        core=True,
    ),
    Family("cohere", {"tie_word_embeddings": True, "logit_scale": 0.25}),
    Family(
        "cohere2",
        {
            "num_hidden_layers": 4,
            "tie_word_embeddings": True,
            "logit_scale": 0.25,
            "sliding_window": WINDOW,
        },
        core=True,
    ),
    Family("gpt2", {"tie_word_embeddings": True}, _GPT2_SIZES, core=True),
    Family("gpt_neox", {"hidden_dropout": 0.2}),
    Family(
        "opt",
        {
            "ffn_dim": 64,
            "dropout": 0.2,
            "init_std": 0.2,
            "word_embed_proj_dim": 32,
            "tie_word_embeddings": True,
        },
    ),
    Family(
        "opt",
        {
            "ffn_dim": 64,
            "dropout": 0.2,
            "init_std": 0.2,
            "word_embed_proj_dim": 16,
            "do_layer_norm_before": False,
            "tie_word_embeddings": True,
        },
        variant="projected",
        remark="with `word_embed_proj_dim` below `hidden_size`",
        core=True,
    ),
    Family(
        "starcoder2",
        {
            "sliding_window": WINDOW,
            "residual_dropout": 0.2,
            "embedding_dropout": 0.2,
            "tie_word_embeddings": True,
        },
    ),
    Family(
        "falcon",
        {"hidden_dropout": 0.2, "tie_word_embeddings": True},
        {name: value for name, value in SIZES.items() if name != "head_dim"},
        refused_bidirectional=STAYS_CAUSAL,
        attention_dropout=False,
        core=True,
    ),
    Family(
        "exaone4", {"num_hidden_layers": 4, "sliding_window": WINDOW, "sliding_window_pattern": 4}
    ),
    Family(
        "gpt_oss",
        {
            "sliding_window": WINDOW,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 2.0,
                "original_max_position_embeddings": 256,
            },
        },
        core=True,
    ),
    Family("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    Family(
        "qwen3_moe",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "mlp_only_layers": [0],
        },
    ),
    Family(
        "lfm2",
        {
            "num_hidden_layers": 3,
            "layer_types": ["conv", FULL, "conv"],
            "block_auto_adjust_ff_dim": False,
            "tie_word_embeddings": True,
        },
        attention_dropout=False,
        core=True,
    ),
    Family("glm4"),
    Family("hunyuan_v1_dense"),
    Family("ernie4_5", {"tie_word_embeddings": True}, attention_dropout=False),
    Family("arcee"),
    Family("bitnet"),
    Family(
        "bloom",
        {"n_layer": 2, "n_head": 4, "hidden_dropout": 0.2, "tie_word_embeddings": True},
        refused_bidirectional=STAYS_CAUSAL,
    ),
    Family("gptj", {"rotary_dim": 4}, _GPT2_SIZES, refused_bidirectional=STAYS_CAUSAL),
    Family(
        "gpt_neo",
        {
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": WINDOW,
            "resid_dropout": 0.2,
            "embed_dropout": 0.2,
            "tie_word_embeddings": True,
        },
        refused_bidirectional=STAYS_CAUSAL,
    ),
    Family(
        "mamba",
        {"state_size": 4, "time_step_rank": 4},
        refused="no linear layers of attention or MLP",
    ),
    Family("stablelm", {"hidden_dropout": 0.2}, refused_bidirectional=STAYS_CAUSAL),
    Family("nemotron", refused_bidirectional=STAYS_CAUSAL),
    Family(
        "falcon_h1",
        {
            "mamba_d_ssm": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_chunk_size": 16,
            "lm_head_multiplier": 0.25,
            "embedding_multiplier": 3.0,
            "key_multiplier": 0.5,
            "attention_out_multiplier": 0.5,
            "ssm_out_multiplier": 0.5,
        },
        refused="token embeddings give other states than token ids",
    ),
    Family(
        "qwen3_next",
        {
            "layer_types": ["linear_attention", FULL],
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
        },
    ),
    Family(
        "llama4_text",
        {
            "num_hidden_layers": 4,
            "intermediate_size_mlp": 64,
            "num_local_experts": 4,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": WINDOW,
        },
        refused_bidirectional=STAYS_CAUSAL,
        core=True,
    ),
    Family(
        "gemma3",
        {
            "tie_word_embeddings": True,
            "text_config": {
                "num_hidden_layers": 2,
                "layer_types": [SLIDING, FULL],
                "sliding_window": WINDOW,
                "query_pre_attn_scalar": 4,
                "rope_parameters": ROPES,
            },
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 32,
                "patch_size": 16,
            },
            "mm_tokens_per_image": 4,
            "image_token_index": 5,
            "boi_token_index": 6,
            "eoi_token_index": 7,
        },
        remark="multimodal: the language model is taken out",
    ),
    Family(
        "gemma3n_text",
        {
            "num_hidden_layers": 4,
            "layer_types": [SLIDING, FULL, SLIDING, FULL],
            "num_kv_shared_layers": 2,
            "sliding_window": WINDOW,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 0,
            "laurel_rank": 4,
            "final_logit_softcapping": 2.0,
            "tie_word_embeddings": True,
        },
        refused="token embeddings give other states than token ids",
        refused_bidirectional=STAYS_CAUSAL,
    ),
    Family(
        "gemma4_text",
        {
            "layer_types": [SLIDING, FULL],
            "sliding_window": WINDOW,
            "hidden_size_per_layer_input": 0,
            "final_logit_softcapping": 2.0,
            "tie_word_embeddings": True,
        },
    ),
    Family(
        "minicpm3",
        {
            "num_key_value_heads": 4,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8,
            "v_head_dim": 8,
            "scale_emb": 3,
            "dim_model_base": 8,
            "tie_word_embeddings": True,
        },
    ),
    Family("glm"),
    Family("olmo", {"clip_qkv": 2.0}),
    Family("seed_oss", {"residual_dropout": 0.2}),
    Family(
        "apertus",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            }
        },
    ),
    Family(
        "phimoe",
        {"num_local_experts": 4, "num_experts_per_tok": 2},
        refused="in training its states are others",
    ),
    Family("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    Family(
        "ministral3",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 2.0,
                "original_max_position_embeddings": 16,
                "llama_4_scaling_beta": 0.1,
            }
        },
    ),
    Family(
        "deepseek_v3",
        {
            "num_key_value_heads": 4,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8,
            "v_head_dim": 8,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
        },
    ),
    Family(
        "granitemoehybrid",
        {
            "layer_types": ["mamba", "attention"],
            "embedding_multiplier": 3.0,
            "logits_scaling": 4.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.2,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 16,
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_chunk_size": 16,
        },
    ),
    Family(
        "qwen3_5_text",
        {
            "layer_types": ["linear_attention", FULL],
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
        },
    ),
]
