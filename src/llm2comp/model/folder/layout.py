"""Write an encoder folder so that a client either computes the same embeddings or refuses it.

sentence-transformers 6 and transformers 5 name modules, tokenizer classes and rotary embeddings
differently from earlier versions. An earlier version fails on the new names, or it ignores them
and computes other embeddings. A folder with causal attention gets the old names, which all versions
read. A folder that only new versions compute rightly keeps the new names, which old versions
refuse, and `requirements`, which sentence-transformers 6 checks before it loads anything.
`make test-ecosystem` measures both in each version.
"""

import json
from pathlib import Path
from typing import Any

import transformers

LAYOUT = b"2"
"""Version of what is written here and beside it; a released encoder in the cache has it."""
NEW_CLIENTS = {"sentence-transformers": ">=6.2", "transformers": ">=5.2"}
"""Versions that read everything that is written here."""
OLD_CLIENTS = {"sentence-transformers": ">=3.4"}
"""Versions that read a folder with the old names."""
OLD_ROPE_TYPES = {"default", "linear", "dynamic", "yarn", "llama3", "longrope"}
POOLING_MODES = (
    "cls_token",
    "mean_tokens",
    "max_tokens",
    "mean_sqrt_len_tokens",
    "weightedmean_tokens",
    "lasttoken",
)

Json = dict[str, Any]


def write_layout(folder: Path, *, compiled: bool = False) -> dict[str, str]:
    """Rewrite the small files of a folder that sentence-transformers has saved.

    Args:
        folder: with a transformer, `WordWeights`, `Pooling` with the mode `mean`, and `Normalize`.
        compiled: whether the body is a graph, in which the attention is fixed, whatever the version
            of transformers.

    Returns:
        The versions that a client needs, by package: a lower bound each.
    """
    config = _read(folder / "config.json")
    # A server that does not know `WordWeights` would pool over the text. Servers choose their code
    # by this name, and refuse one that they do not know. transformers goes by `model_type`.
    config["architectures"] = [f"{config['architectures'][0].removesuffix('Model')}MemoryEncoder"]
    # GPT-2 and others would add the embedding of a token type to each token.
    tokenizer = _read(folder / "tokenizer_config.json")
    tokenizer["model_input_names"] = ["input_ids", "attention_mask"]
    for key in ("is_local", "local_files_only"):  # about the machine that wrote it
        tokenizer.pop(key, None)
    needed = OLD_CLIENTS if compiled else _needed(config)
    if needed == OLD_CLIENTS:
        config |= _old_rope(config.get("rope_parameters")) | (_old_windows(config) or {})
        tokenizer.pop("backend", None)
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
        _use_old_modules(folder, tokenizer["model_max_length"])
    else:
        settings = folder / "config_sentence_transformers.json"
        _write(settings, _read(settings) | {"requirements": needed})
    _write(folder / "config.json", config)
    _write(folder / "tokenizer_config.json", tokenizer)
    return needed


def _needed(config: Json) -> dict[str, str]:
    """Return the versions that compute what a configuration says."""
    if config.get("attn_logit_softcapping"):
        # Versions before 5.23 leave soft-capping out of PyTorch's fused attention.
        return NEW_CLIENTS | {"transformers": f">={transformers.__version__}"}
    ropes = _ropes(config.get("rope_parameters"))
    if (
        not config["is_causal"]  # counts from transformers 5.2 on
        or not {rope["rope_type"] for rope in ropes} <= OLD_ROPE_TYPES
        or _old_windows(config) is None
    ):
        return NEW_CLIENTS
    return OLD_CLIENTS


def _ropes(parameters: Json | None) -> list[Json]:
    """Return the rotary embeddings of a configuration: none, one, or one per type of layer."""
    if not parameters:
        return []
    return [parameters] if "rope_type" in parameters else list(parameters.values())


def _old_rope(parameters: Json | None) -> Json:
    """Return rotary embeddings as transformers 4 reads them, at the top of the configuration."""
    if not parameters:
        return {}
    if "rope_type" not in parameters:  # Gemma 3
        local = parameters["sliding_attention"]["rope_theta"]
        return _old_rope(parameters["full_attention"]) | {"rope_local_base_freq": local}
    old: Json = {"rope_theta": parameters["rope_theta"]}
    scaling = {key: value for key, value in parameters.items() if key != "rope_theta"}
    if "partial_rotary_factor" in scaling:
        old["partial_rotary_factor"] = scaling.pop("partial_rotary_factor")
    return old if scaling["rope_type"] == "default" else old | {"rope_scaling": scaling}


def _old_windows(config: Json) -> Json | None:
    """Return which layers have a sliding window as transformers before 4.53 reads it.

    Returns:
        None if it can say only that each n-th layer has none, and the configuration says otherwise.
    """
    layers = config.get("layer_types") or []
    if set(layers) != {"sliding_attention", "full_attention"}:
        return {}
    period = layers.index("full_attention") + 1
    periodic = [
        "full_attention" if i % period == 0 else "sliding_attention"
        for i in range(1, len(layers) + 1)
    ]
    return {"sliding_window_pattern": period} if layers == periodic and period > 1 else None


def _use_old_modules(folder: Path, max_length: int) -> None:
    """Name modules and their settings as sentence-transformers before 5.4 does."""
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    for module in modules:
        name = module["type"].rpartition(".")[2]
        module["type"] = f"sentence_transformers.models.{name}"
        if name == "Pooling":
            pooling = _read(folder / module["path"] / "config.json")
            modes = {f"pooling_mode_{mode}": mode == "mean_tokens" for mode in POOLING_MODES}
            dimension = {"word_embedding_dimension": pooling["embedding_dimension"]}
            _write(
                folder / module["path"] / "config.json",
                dimension | modes | {"include_prompt": pooling["include_prompt"]},
            )
    _write(folder / "modules.json", modules)
    settings = {"max_seq_length": max_length, "do_lower_case": False}
    _write(folder / "sentence_bert_config.json", settings)


def _read(file: Path) -> Json:
    content: Json = json.loads(file.read_text(encoding="utf-8"))
    return content


def _write(file: Path, content: Json | list[Json]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
