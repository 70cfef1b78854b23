"""Encoders by name: those that this package contains, local folders, peers, hub ids.

This package contains the adapter of each stage of a released encoder (LoRA factors and memory
embeddings in bfloat16) and its lineage. `fetch` merges the adapters into the packaged backbone,
once, in the user's cache.
"""

import hashlib
from pathlib import Path

from llm2comp.data import catalog
from llm2comp.data.hub import cached_model, download_encoder, has_file, require_model
from llm2comp.errors import UserError
from llm2comp.model import encoder
from llm2comp.model.folder.layout import LAYOUT
from llm2comp.model.lineage import LINEAGE, Lineage
from llm2comp.recipe import STAGE_FOLDERS
from llm2comp.utils.files import cache_dir, user_path

RELEASED = Path(__file__).parent / "released"
PEERS = ("minilm",)
"""Encoders by others that install from a package index."""


def names() -> list[str]:
    """Return the names of the released encoders."""
    return sorted(folder.name for folder in RELEASED.iterdir() if folder.is_dir())


def fetch(name: str) -> Path:
    """Return the encoder folder of a released model, building it in the cache the first time.

    Args:
        name: one of `names()`; `NAME/1-pretext` and `NAME/2-unsupervised` are the encoders after
            these stages.

    Raises:
        UserError: if there is no such release.
    """
    release, _, stage = name.partition("/")
    if release not in names():
        raise UserError(f"no released model {release!r}; there are {', '.join(names())}")
    lineage = Lineage.read(RELEASED / release)
    stages = [STAGE_FOLDERS[entry.stage] for entry in lineage.stages]
    stage = stage or stages[-1]
    if stage not in stages:
        raise UserError(f"{release} has no stage {stage!r}; it has {', '.join(stages)}")
    trained = stages[: stages.index(stage) + 1]
    adapters = [RELEASED / release / name for name in trained]
    folder = cache_dir() / "models" / f"{release}-{_digest(adapters)}" / stage
    if not folder.exists():
        lineage = lineage.until(len(adapters))
        encoder.save(encoder.build(lineage, adapters), folder, adapters[-1], lineage)
    return folder


def _digest(adapters: list[Path]) -> str:
    """Return a digest of what another version of the package may change in the folder."""
    digest = hashlib.sha256(LAYOUT)
    for adapter in adapters:
        digest.update((adapter / "adapter_model.safetensors").read_bytes())
    return digest.hexdigest()[:8]


def adapter_of(name: str) -> Path:
    """Return the adapter folder of an encoder.

    Args:
        name: encoder folder, or name of a release; without a stage the adapter of its first.

    Raises:
        UserError: if there is none.
    """
    local = Path(name).expanduser() / encoder.ADAPTER
    if local.is_dir():
        return local
    release, _, stage = name.partition("/")
    shipped = RELEASED / release / (stage or STAGE_FOLDERS["pretext"])
    if not shipped.is_dir():
        raise UserError(f"{name!r} is neither an encoder folder with an adapter nor a release")
    return shipped


def lineage_of_adapter(adapter: Path) -> Lineage:
    """Return the lineage of the encoder that got an adapter in its last stage.

    Args:
        adapter: as `adapter_of` returns it.

    Raises:
        UserError: if the encoder has no lineage, or one that this version cannot read.
    """
    lineage = Lineage.read(adapter.parent)
    folders = [STAGE_FOLDERS.get(entry.stage) for entry in lineage.stages]
    # The stages of a release share one lineage.
    return lineage.until(folders.index(adapter.name) + 1) if adapter.name in folders else lineage


def resolve_encoder(name: str) -> str:
    """Return the local folder or the hub id of an encoder.

    An encoder of ours on the hub is downloaded, because its folder says more than its modules do.
    Encoders of others are left to sentence-transformers.

    Args:
        name: released encoder, peer, local folder, or hub id.

    Raises:
        UserError: if there is no such release, or neither a folder nor a hub model of that name.
    """
    local = local_encoder(name)
    if local is not None:
        return str(local)
    require_model(name)
    if not has_file(name, LINEAGE):
        return name
    folder = download_encoder(name, code=True)  # its code is run only if the user trusts it
    if Lineage.read(folder).compiled:
        folder = download_encoder(name, folder.name, compiled=True)
    return str(folder)


def local_encoder(name: str) -> Path | None:
    """Return the folder of an encoder on this machine; None if the name can only be a hub id.

    Args:
        name: released encoder, peer, local folder, or hub id.

    Raises:
        UserError: if there is no such release, or the folder is that of a run.
    """
    if not name:
        raise UserError("the name of the encoder is empty; give a folder, a name or a hub id")
    if name.partition("/")[0] in names() and not Path(name).exists():
        return fetch(name)
    if name in PEERS:
        return catalog.fetch(name)
    folder = Path(name).expanduser()
    if (folder / "model" / "modules.json").is_file() and not (folder / "modules.json").exists():
        raise UserError(f"{name} is the folder of a run; its encoder is {folder / 'model'}")
    return folder if folder.is_dir() else None


def lineage_of(name: str) -> Lineage | None:
    """Return the lineage of an encoder; None if it was not made by this package.

    Args:
        name: released encoder, local folder, or hub id. That of a hub id is known once it was
            loaded.
    """
    folder = fetch(name) if name.partition("/")[0] in names() else user_path(name)
    if not folder.exists():
        folder = cached_model(name) or folder
    return Lineage.read(folder) if (folder / LINEAGE).is_file() else None
