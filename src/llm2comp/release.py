"""Models by name: released encoders kept in this package, local folders, peers, hub ids.

A release holds, per stage, the adapter that the stage trained (LoRA and memory
rows, bfloat16) with the lineage; :func:`fetch` merges them into the packaged
backbone, once, in the user's cache.
"""

import hashlib
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedModel

from llm2comp import compiled, encoder
from llm2comp.attention import for_encoding
from llm2comp.batching import TokenBatched
from llm2comp.cache import cache_dir, whole_folder
from llm2comp.data import catalog
from llm2comp.errors import UserError
from llm2comp.hub import require_model
from llm2comp.stages.folders import FOLDERS

RELEASED = Path(__file__).parent / "released"
PEERS = ("minilm",)
"""Encoders of others that install from a package index."""


def names() -> list[str]:
    """Return the names of the released encoders."""
    return sorted(folder.name for folder in RELEASED.iterdir() if folder.is_dir())


def fetch(name: str) -> Path:
    """Return the encoder folder of a released model, building it in the cache the first time.

    Args:
        name: as in :func:`names`; ``NAME/1-pretext`` or ``NAME/2-unsupervised``
            is the encoder after that stage.

    Raises:
        UserError: if there is no such release.
    """
    release, _, stage = name.partition("/")
    if release not in names():
        raise UserError(f"no released model {release!r}; there are {', '.join(names())}")
    lineage = encoder.read_lineage(RELEASED / release)
    stages = [FOLDERS[entry["stage"]] for entry in lineage["stages"]]
    stage = stage or stages[-1]
    if stage not in stages:
        raise UserError(f"{release} has no stage {stage!r}; it has {', '.join(stages)}")
    trained = stages[: stages.index(stage) + 1]
    adapters = [RELEASED / release / name for name in trained]
    folder = cache_dir() / "models" / f"{release}-{_digest(adapters)}" / stage
    if not folder.exists():
        lineage["stages"] = lineage["stages"][: len(adapters)]
        encoder.save(encoder.build(lineage, adapters), folder, adapters[-1], lineage)
    return folder


def _digest(adapters: list[Path]) -> str:
    """Name the weights, so that a package's next release is not taken for the last one's."""
    whole = hashlib.sha256()
    for adapter in adapters:
        whole.update((adapter / "adapter_model.safetensors").read_bytes())
    return whole.hexdigest()[:8]


def adapter_of(name: str) -> Path:
    """Return the adapter folder of a local encoder folder or of a released stage.

    Raises:
        UserError: if there is none.
    """
    local = Path(name).expanduser() / encoder.ADAPTER
    if local.is_dir():
        return local
    release, _, stage = name.partition("/")
    shipped = RELEASED / release / (stage or FOLDERS["pretext"])
    if not shipped.is_dir():
        raise UserError(f"{name!r} is neither an encoder folder with an adapter nor a release")
    return shipped


def source_of(name: str) -> str:
    """Return what an encoder's name stands for: a local folder, or a hub id as it is.

    Raises:
        UserError: if there is no such release, or neither a folder nor a hub model of that name.
    """
    if name.partition("/")[0] in names() and not Path(name).exists():
        return str(fetch(name))
    if name in PEERS:
        return str(catalog.fetch(name))
    if not Path(name).is_dir():
        require_model(name)
    return name


def load_model(name: str, dtype: torch.dtype = torch.float32) -> SentenceTransformer:
    """Load an encoder by name: local folder, released model, peer, or hub id.

    A compiled one computes in a precision of its own.

    Raises:
        UserError: if it cannot be loaded.
    """
    source = source_of(name)
    if compiled.backend_of(Path(source)):
        return compiled.load(Path(source))
    try:
        model = TokenBatched(source, model_kwargs={"dtype": dtype})
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"model {name!r} cannot be loaded ({reason}); "
            f"give an encoder folder, a hub id, or one of {', '.join([*names(), *PEERS])}"
        ) from error
    body = getattr(model[0], "model", None)
    if isinstance(body, PreTrainedModel):
        for_encoding(body)
    return model


def lineage_of(name: str) -> dict[str, Any] | None:
    """Return the lineage of an encoder by name; None if it is not one of ours."""
    folder = fetch(name) if name.partition("/")[0] in names() else Path(name)
    return encoder.read_lineage(folder) if (folder / encoder.LINEAGE).is_file() else None


def pack(run: Path, target: Path) -> None:
    """Make a release of a finished run: its adapters in bfloat16 and its lineage.

    Raises:
        UserError: if the run has not finished.
    """
    lineage = encoder.read_lineage(run / "model")
    with whole_folder(target) as partial:
        for entry in lineage["stages"]:
            stage = FOLDERS[entry["stage"]]
            adapter = partial / stage
            encoder.copy_adapter(run / stage / encoder.ADAPTER, adapter)
            weights = adapter / "adapter_model.safetensors"
            tensors = load_file(weights)
            save_file({n: t.to(torch.bfloat16) for n, t in tensors.items()}, weights)
        shutil.copyfile(run / "model" / encoder.LINEAGE, partial / encoder.LINEAGE)
        if (run / "scores.json").exists():
            shutil.copyfile(run / "scores.json", partial / "scores.json")


if __name__ == "__main__":
    pack(Path(sys.argv[1]), RELEASED / sys.argv[2])
