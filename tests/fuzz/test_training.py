"""Runs of one step with odd settings: finite weights, or one line."""

from pathlib import Path
from typing import Any

import yaml
from cases import case, cases, run
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

RATES = [
    "1e-320",
    "1.0e-30",
    "1.0e-8",
    "1.0",
    "1.0e+4",
    "1.0e+30",
    "1.0e+308",
    ".inf",
    ".nan",
    "-1.0",
]
SMALL = ["1", "2", "3", "5", "7", "0", "-1", "2.5", "true", "null", "a", ".nan"]
NUMBERS = ["learning_rate", "memory_learning_rate", "weight_decay", "max_grad_norm", "temperature"]
NUMBERS += ["attention_dropout", "mask_probability", "lora.alpha", "lora.dropout", "data.0.weight"]
SIZES = ["steps", "batch_size", "lora.r", "warmup_steps", "save_steps", "log_steps", "eval_steps"]
SIZES += ["mini_batch_size", "mini_batch_tokens", "max_length", "eval_pairs", "eval_passages"]
SIZES += ["split.low", "split.high", "split.margin", "split.continuation", "split.ramp_steps"]
SIZES += ["split.start", "passages.min_chars", "passages.max_tokens", "bidirectional_from_step"]
CHOICES = {
    "scheduler": ["linear", "cosine", "constant_with_warmup"],
    "objective": ["reconstruction", "mntp", "embedding_prediction", "prefix_reconstruction", "x"],
    "attention": ["causal", "bidirectional"],
    "masking": ["bert", "all"],
    "split.per": ["sample", "batch"],
    "passages.crop": ["true", "false"],
    "gradient_checkpointing": ["true"],
}
WHOLE = {
    "memory.tokens": SMALL,
    "memory.init": ["text", "x"],
    "memory.scale": ["none", "embeddings", "x"],
    "max_length": SMALL,
    "seed": ["-1", "4294967296", "18446744073709551616", "1"],
    "backbone.dtype": ["float32", "bfloat16", "float16"],
    "backbone.add_bos": ["true", "false", "null"],
    "prompts.query": ["'find: '", "'\\ud800'", "'\\0'", "''"],
    "on_bad_row": ["skip", "x"],
}

of_a_stage = st.one_of(
    st.tuples(st.sampled_from(NUMBERS), st.sampled_from([*RATES, "0", "0.5"])),
    st.tuples(st.sampled_from(SIZES), st.sampled_from(SMALL)),
    st.sampled_from(sorted(CHOICES)).flatmap(
        lambda key: st.tuples(st.just(key), st.sampled_from(CHOICES[key]))
    ),
)
of_the_recipe = st.sampled_from(sorted(WHOLE)).flatmap(
    lambda key: st.tuples(st.just(key), st.sampled_from(WHOLE[key]))
)


@cases(12)
@given(
    stage=st.sampled_from(["pretext", "pretext", "unsupervised", "supervised"]),
    stage_changes=st.lists(of_a_stage, min_size=1, max_size=2),
    changes=st.lists(of_the_recipe, max_size=1),
)
def test_a_run_with_odd_settings_ends_well_or_is_refused(
    short_recipe: str,
    stage: str,
    stage_changes: list[tuple[str, str]],
    changes: list[tuple[str, str]],
) -> None:
    with case("recipes: train"):
        recipe: dict[str, Any] = yaml.safe_load(short_recipe)
        recipe["stages"] = [
            part for part in recipe["stages"] if part["stage"] in ("pretext", stage)
        ]
        Path("recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
        overrides = [f"{stage}.{key}={value}" for key, value in stage_changes]
        overrides += [f"{key}={value}" for key, value in changes]
        outcome = run(
            ["train", "recipe.yaml", "--out", "run", "--", *overrides], writes=["run"], begins="run"
        )
        weights = list(Path("run").rglob("*.safetensors"))
        assert weights or outcome.status == 2
        for file in weights:
            assert all(tensor.isfinite().all() for tensor in load_file(file).values()), file
