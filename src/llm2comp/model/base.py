"""The encoder that a run starts from, where a recipe has a `base`: one of ours or of others.

An encoder of others is accepted for what it does, too: its first module is a transformer that
reads text, and the rest is left as it is.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules.transformer import Transformer
from sentence_transformers.sentence_transformer.modules import WordWeights
from transformers import PreTrainedModel

from llm2comp.data import catalog
from llm2comp.data.hub import download_encoder
from llm2comp.errors import UserError, one_line
from llm2comp.model import released
from llm2comp.model.backbone import is_commit, licence_in, pinned
from llm2comp.model.lineage import LINEAGE, Base, Lineage
from llm2comp.model.loading.checkpoint import silent
from llm2comp.model.multi_vector.late_interaction import require_one_vector
from llm2comp.recipe import Recipe
from llm2comp.utils.checksums import CARD, fingerprint, require_unchanged


@dataclass(frozen=True)
class BaseEncoder:
    """A base that can be trained.

    Attributes:
        folder: on this machine.
        lineage: of a run that starts from it, before its first stage.
    """

    folder: Path
    lineage: Lineage


def open_base(recipe: Recipe) -> BaseEncoder:
    """Find the base of a recipe, and check that it can be trained.

    Args:
        recipe: with a `base`. `backbone.revision` is the base's, if it is a model of the hub.

    Raises:
        UserError: if there is no such encoder, it is damaged or an export, or it has no
            transformer.
    """
    name = str(recipe.base)
    folder = base_folder(recipe)
    require_one_vector(folder, f"base {name!r}")
    require_unchanged(folder, edited=CARD)
    base = Base(name=name, revision=recipe.backbone.revision, fingerprint=fingerprint(folder))
    if (folder / LINEAGE).is_file():
        lineage = Lineage.read(folder)
        if lineage.compiled is not None:
            raise UserError(f"base {name!r} is compiled; give the folder that it was made from")
        if lineage.last_token:
            raise UserError(f"base {name!r} is an export; give the folder that it was made from")
        stored = json.loads((folder / "config_sentence_transformers.json").read_bytes())["prompts"]
        lineage = lineage.model_copy(update={"prompts": lineage.prompts | stored})
        return BaseEncoder(folder, lineage.continued(recipe, base))
    encoder = _load(folder, name, trust_remote_code=recipe.backbone.trust_remote_code)
    if not isinstance(encoder[0], Transformer) or not isinstance(encoder[0].model, PreTrainedModel):
        raise UserError(
            f"base {name!r} cannot be trained: its first module is a {type(encoder[0]).__name__}, "
            "and only a transformer in PyTorch can be"
        )
    prompts = {name: prompt or "" for name, prompt in encoder.prompts.items()}
    lineage = Lineage.of_others(recipe, base, prompts, encoder.max_seq_length)
    peer = name in released.PEERS
    licence = catalog.entry(name).licence.lower() if peer else licence_in(folder)
    return BaseEncoder(folder, lineage.model_copy(update={"licence": licence}))


def base_folder(recipe: Recipe) -> Path:
    """Return the folder of a recipe's base; a model of the hub is downloaded.

    Raises:
        UserError: if there is no such encoder.
    """
    name, backbone = str(recipe.base), recipe.backbone
    local = released.local_encoder(name)
    if local is None and name.startswith((".", "/", "~")):
        raise UserError(f"base {name}: no such folder")
    if local is None:
        return download_encoder(name, backbone.revision, code=backbone.trust_remote_code)
    if backbone.revision is not None:
        raise UserError(f"base {name} is on this machine; backbone.revision is for hub models")
    return local


def _pinned_base(recipe: Recipe) -> Recipe:
    """Return a recipe whose `backbone.revision` is the commit of its base on the hub.

    Raises:
        UserError: if the base is on the hub, which has no such model or cannot be reached.
    """
    backbone = recipe.backbone
    if is_commit(backbone.revision) or released.local_encoder(str(recipe.base)) is not None:
        return recipe
    at_commit = backbone.model_copy(update={"revision": base_folder(recipe).name})
    return recipe.model_copy(update={"backbone": at_commit})


def pinned_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe with the commit of what it starts from, which a run keeps."""
    if recipe.base is not None:
        return _pinned_base(recipe)
    return recipe.model_copy(update={"backbone": pinned(recipe.backbone)})


def transformer_folder(folder: Path) -> Path:
    """Return the folder of the transformer in an encoder folder; old ones have a subfolder."""
    modules = folder / "modules.json"
    if not modules.is_file():
        return folder
    first = json.loads(modules.read_bytes())[0]
    return folder / str(first["path"])


def freeze_word_weights(encoder: SentenceTransformer) -> None:
    """Freeze what saving would not keep: sentence-transformers reads word weights from settings."""
    for module in encoder.children():
        if isinstance(module, WordWeights):
            module.requires_grad_(False)


def _load(folder: Path, name: str, *, trust_remote_code: bool) -> SentenceTransformer:
    try:
        with silent():
            return SentenceTransformer(
                str(folder), device="cpu", trust_remote_code=trust_remote_code
            )
    except Exception as error:  # the libraries raise whatever comes up
        raise UserError(
            f"base {name!r} cannot be loaded ({type(error).__name__}: {one_line(error)}); give an "
            f"encoder folder, a hub id, or one of {', '.join([*released.names(), *released.PEERS])}"
        ) from error
