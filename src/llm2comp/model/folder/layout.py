"""Write an encoder folder so that a client either computes the same embeddings or refuses it.

sentence-transformers 6 and transformers 5 name modules, tokenizer classes and rotary embeddings
differently from earlier versions. An earlier version fails on the new names, or it ignores them
and computes other embeddings. A folder with causal attention gets the old names, which all versions
read. A folder that only new versions compute rightly keeps the new names, which old versions
refuse, and `requirements`, which sentence-transformers 6 checks before it loads anything.
`make test-ecosystem` measures both in each version.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import transformers

LAYOUT = b"3"
"""Version of what is written here and beside it; a released encoder in the cache has it."""
NEW_CLIENTS = {"sentence-transformers": ">=6.2", "transformers": ">=5.2"}
"""Versions that read everything that is written here."""
OLD_CLIENTS = {"sentence-transformers": ">=3.4"}
"""Versions that read a folder with the old names."""
COMPILED_CLIENTS = {"sentence-transformers": ">=5.7"}
"""Versions in which optimum has loaded a compiled folder."""
WRITTEN = {
    "config_sentence_transformers.json",
    "llm2comp.json",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
}
"""Files of an encoder of others that are not kept; nor is `config.json` of its transformer."""
OLD_ROPE_TYPES = {"default", "linear", "dynamic", "yarn", "llama3"}
OLD_NAMES_OF_ROPE = {"gpt_neox", "gpt_neox_japanese"}
"""Architectures that transformers 4 reads rotary embeddings of under names of their own alone."""
POOLING_MODES = (
    "cls_token",
    "mean_tokens",
    "max_tokens",
    "mean_sqrt_len_tokens",
    "weightedmean_tokens",
    "lasttoken",
)

POOLS_BY_ITSELF = (
    "The outputs of this encoder are weighted by 1_WordWeights before they are pooled, and pooling "
    "alone gives other embeddings: use sentence-transformers, infinity or llm2comp serve."
)
"""Stands in the place of a pooling mode, as a string where programs expect a table."""
MANY_VECTORS = (
    "This encoder has several vectors per text, which 1_MultiVectorMask chooses, and pooling alone "
    "gives other embeddings: use MultiVectorEncoder of sentence-transformers."
)
"""Stands there in a folder of a `MultiVectorEncoder`."""

Json = dict[str, Any]


def write_layout(folder: Path, *, compiled: bool = False) -> dict[str, str]:
    """Rewrite the small files of a folder that sentence-transformers has saved.

    Args:
        folder: with a transformer, `Pooling` and `Normalize`, and `WordWeights` unless it pools the
            last token, or `MultiVectorMask`, which only new versions know.
        compiled: whether the body is a graph, which has the attention in it.

    Returns:
        The versions that a client needs, by package: a lower bound each.
    """
    config = _read(folder / "config.json")
    modules = (folder / "modules.json").read_text(encoding="utf-8")
    many_vectors = "MultiVectorMask" in modules
    if many_vectors or "WordWeights" in modules:
        # A program that does not know `WordWeights` would pool over the text. vLLM and llama.cpp
        # choose their code by this name, and refuse one that they do not know; transformers goes by
        # `model_type`. txtai and text-embeddings-inference look for `1_Pooling`, wherever
        # `modules.json` has the pooling, and end with an error if they cannot read it.
        name = config["architectures"][0].removesuffix("Model")
        config["architectures"] = [f"{name}MemoryEncoder"]
        (folder / "1_Pooling").mkdir()
        why = MANY_VECTORS if many_vectors else POOLS_BY_ITSELF
        _write(folder / "1_Pooling" / "config.json", why)
    tokenizer = _read(folder / "tokenizer_config.json")
    # Without this, transformers 4 gives GPT-2 and others an embedding of token types to add.
    tokenizer["model_input_names"] = ["input_ids", "attention_mask"]
    for key in ("is_local", "local_files_only"):  # about the machine that wrote it
        tokenizer.pop(key, None)
    old = {} if compiled else None if many_vectors else _as_transformers_4(config)
    if old is None:
        needed = NEW_CLIENTS | _softcapping(config)
        settings = folder / "config_sentence_transformers.json"
        _write(settings, _read(settings) | {"requirements": needed})
    else:
        needed = COMPILED_CLIENTS if compiled else OLD_CLIENTS
        config |= old
        tokenizer.pop("backend", None)
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
        _use_old_modules(folder, tokenizer["model_max_length"])
    _write(folder / "config.json", config)
    _write(folder / "tokenizer_config.json", tokenizer)
    return needed


def keep_layout(source: Path, folder: Path) -> dict[str, str]:
    """Give a folder the small files of the encoder of others that it was made from.

    Clients that read the encoder then read the folder too. Only weights, the prompts and the
    configuration of the transformer are as they were saved. An encoder whose modules are in other
    folders keeps none of its files.

    Args:
        source: folder of the encoder of others.
        folder: that sentence-transformers has saved.

    Returns:
        The versions that a client needs, by package; none if they are those of the encoder.
    """
    if not (source / "modules.json").is_file():  # a bare transformer
        return NEW_CLIENTS
    before, now = (
        [module["path"] for module in json.loads((where / "modules.json").read_bytes())]
        for where in (source, folder)
    )
    if before != now:
        return NEW_CLIENTS
    written = {folder / now[0] / "config.json", *(folder / name for name in WRITTEN)}
    for file in (file for path in {"", *now} for file in (source / path).glob("*")):
        target = folder / file.relative_to(source)
        if file.suffix in (".json", ".txt", ".model", ".jinja") and target not in written:
            shutil.copyfile(file, target)
    return {}


def _as_transformers_4(config: Json) -> Json | None:
    """Return what transformers 4 reads in other places of a configuration.

    Returns:
        None if it has no words for something, and would compute another model without an error.
    """
    rope, windows = _old_rope(config.get("rope_parameters")), _old_windows(config)
    if rope is None or windows is None or not config["is_causal"] or _softcapping(config):
        return None
    if config.get("model_type") in OLD_NAMES_OF_ROPE:
        names = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
        rope |= {old: rope[new] for new, old in names.items() if new in rope}
    return rope | windows


def _softcapping(config: Json) -> dict[str, str]:
    """Return the version that caps scores as the present one does; none if they are not capped.

    Others may not: transformers 5.2 leaves the cap out of PyTorch's fused attention.
    """
    capped = config.get("attn_logit_softcapping") is not None
    return {"transformers": f">={transformers.__version__}"} if capped else {}


def _old_rope(parameters: Json | None) -> Json | None:
    """Return rotary embeddings as transformers 4 reads them; None if it has no words for them."""
    if not parameters:
        return {}
    if "rope_type" not in parameters:  # one for each type of layer, as in Gemma 3
        local, whole = (parameters.get(f"{kind}_attention") for kind in ("sliding", "full"))
        old = _old_rope(whole)
        if len(parameters) > 2 or not local or not old or local["rope_type"] != "default":
            return None
        return old | {"rope_local_base_freq": local["rope_theta"]}
    if parameters["rope_type"] not in OLD_ROPE_TYPES:
        return None
    scaling = dict(parameters)
    moved: Json = {
        key: scaling.pop(key) for key in ("rope_theta", "partial_rotary_factor") if key in scaling
    }
    return moved if scaling["rope_type"] == "default" else moved | {"rope_scaling": scaling}


def _old_windows(config: Json) -> Json | None:
    """Return which layers have a sliding window as transformers before 4.53 reads it.

    Returns:
        None if other layers than each n-th have none, which it has no words for.
    """
    layers = config.get("layer_types") or []
    if set(layers) != {"sliding_attention", "full_attention"}:
        return {}
    period = layers.index("full_attention") + 1
    whole = [index for index, kind in enumerate(layers, start=1) if kind == "full_attention"]
    periodic = period > 1 and whole == list(range(period, len(layers) + 1, period))
    return {"sliding_window_pattern": period} if periodic else None


def _use_old_modules(folder: Path, max_length: int) -> None:
    """Name modules and their settings as sentence-transformers before 5.4 does."""
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    for module in modules:
        name = module["type"].rpartition(".")[2]
        module["type"] = f"sentence_transformers.models.{name}"
        if name == "Pooling":
            pooling = _read(folder / module["path"] / "config.json")
            modes = {
                f"pooling_mode_{mode}": mode.removesuffix("_tokens") == pooling["pooling_mode"]
                for mode in POOLING_MODES
            }
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


def _write(file: Path, content: Json | list[Json] | str) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
