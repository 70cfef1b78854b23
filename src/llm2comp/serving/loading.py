"""The models and indexes that a server is started with: their names, and how they are loaded."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sentence_transformers import SentenceTransformer

from llm2comp.errors import UserError
from llm2comp.inference.load import load
from llm2comp.model.matryoshka.first_tokens import memory_tokens_of
from llm2comp.model.modules import MergeMemory
from llm2comp.retrieval.index import Index, load_for, stored_name
from llm2comp.serving.searching import ServedIndex
from llm2comp.utils.choices import Precision
from llm2comp.utils.files import user_path


def named_models(models: Sequence[str]) -> dict[str, str]:
    """Return what to load by the name under which it is served: `NAME=FOLDER` gives the name.

    Raises:
        UserError: if two have the same name, or one has none.
    """
    return _named(models, "model", lambda model: model)


def named_indexes(folders: Sequence[str]) -> dict[str, str]:
    """Return the folders of indexes by name, which is that of the folder, or as in `NAME=FOLDER`.

    Raises:
        UserError: if two have the same name, or one has none or a slash in it.
    """
    named = _named(folders, "index", lambda folder: user_path(folder).resolve().name)
    for name, folder in named.items():
        if "/" in name:  # it would be several parts of an address
            raise UserError(f"the name {name!r} of an index has a slash; give NAME={folder}")
    return named


def load_all(
    models: Mapping[str, str],
    indexes: Mapping[str, str],
    dtype: Precision,
    merge_threshold: float | None,
    memory_tokens: int | None = None,
) -> tuple[dict[str, SentenceTransformer], list[ServedIndex]]:
    """Load models, open indexes, and load the encoders of these that are not among the models.

    Args:
        models: what `llm2comp.load` takes, by name.
        indexes: folders, by name.
        dtype: as in `llm2comp.load`.
        merge_threshold: as in `llm2comp.load`; for the models that are named.
        memory_tokens: as in `llm2comp.load`; for the models that are named.

    Returns:
        The encoders by name, and the indexes. An encoder whose k vectors an index has gives them
        after the embedding. An encoder of which an index has another number of memory tokens than
        the model that is named is loaded again for it, as `NAME@2 tokens`. So is one that merges
        its memory tokens, as `NAME, unmerged`, because an index keeps vectors without merging. The
        folder of such a model may have been moved since the index was made.

    Raises:
        UserError: if something cannot be loaded, the encoder of an index is not to be found, or
            memory tokens are to be merged or chosen and no model is named.
    """
    for option, given in {"--merge": merge_threshold, "--memory-tokens": memory_tokens}.items():
        if given is not None and not models:
            raise UserError(
                f"{option} is for models that are named, and an index keeps the encoder that made "
                f"it; leave {option} out"
            )
    # They are opened before models are loaded, which is slow.
    opened = {name: Index(user_path(folder)) for name, folder in indexes.items()}
    named = dict(models)
    encoders = {
        name: load(model, dtype, merge_threshold, memory_tokens=memory_tokens)
        for name, model in named.items()
    }
    served: list[ServedIndex] = []
    for name, index in opened.items():
        encoder = _served(index, named, encoders)
        if encoder is None and _is_gone(index):
            encoder = _fitting(index, named, encoders, dtype)
        elif encoder is None:
            encoder, model = _own(index, named, encoders)
            named[encoder], encoders[encoder] = model, load_for(index.about, model, dtype)
        checked = Index(index.folder, encoders[encoder])
        checked.encoder  # noqa: B018  # it is compared with that of the index
        served.append(ServedIndex(name, checked, encoder))
    # One of k vectors gives them beside the embedding, and others need the embedding alone.
    several = {one.model: one.index.encoder for one in served if one.index.about.vectors > 1}
    return encoders | several, served


def _named(given: Sequence[str], kind: str, name_of: Callable[[str], str]) -> dict[str, str]:
    named: dict[str, str] = {}
    for one in given:
        name, equals, folder = one.partition("=")
        if user_path(one).exists() or not equals:
            name, folder = name_of(one), one
        if not name or not folder:
            raise UserError(f"{one!r} names no {kind}; give a folder, or NAME=FOLDER")
        if name in named:
            raise UserError(f"two are named {name}; give one another name: NAME={folder}")
        named[name] = folder
    return named


def _served(
    index: Index, named: Mapping[str, str], encoders: Mapping[str, SentenceTransformer]
) -> str | None:
    """Return the name of the model that made an index, if it is served as it was then.

    That is with as many memory tokens, which are not merged.
    """
    made, tokens = index.about.model, index.about.memory_tokens
    for name, model in named.items():
        encoder = encoders[name]
        if stored_name(model) != made or _merges(encoder):
            continue
        if tokens in (None, memory_tokens_of(encoder)):
            return name
    return None


def _merges(encoder: SentenceTransformer) -> bool:
    return any(isinstance(module, MergeMemory) for module in encoder.children())


def _is_gone(index: Index) -> bool:
    """Return whether the encoder of an index cannot be loaded by the name that the index has."""
    made = index.about.model
    return made is None or (Path(made).is_absolute() and not Path(made).exists())


def _fitting(
    index: Index,
    named: dict[str, str],
    encoders: dict[str, SentenceTransformer],
    dtype: Precision,
) -> str:
    """Return the name of a model with the vectors of an index whose own is gone.

    One that has them with another number of memory tokens, or without merging, is loaded and named.

    Raises:
        UserError: if no model has them.
    """
    made = index.about.model
    for name, encoder in encoders.items():
        # An index of a loaded model may have merged vectors.
        if (made is None or not _merges(encoder)) and _fits(index, encoder):
            return name
    tried: set[str] = set()
    for name, model in list(named.items()):
        as_many = index.about.memory_tokens in (None, memory_tokens_of(encoders[name]))
        if model in tried or (as_many and not _merges(encoders[name])):
            continue
        tried.add(model)
        encoder = load_for(index.about, model, dtype)
        if _fits(index, encoder):
            variant = _variant(name, index, encoders[name])
            named[variant], encoders[variant] = model, encoder
            return variant
    raise UserError(
        f"{index.folder} was made with {made or 'a loaded model'}, which is not there; name the "
        f"folder of that model before --index"
    )


def _fits(index: Index, encoder: SentenceTransformer) -> bool:
    try:
        Index(index.folder, encoder).encoder  # noqa: B018  # it is compared with that of the index
    except UserError:
        return False
    return True


def _own(
    index: Index, named: Mapping[str, str], encoders: Mapping[str, SentenceTransformer]
) -> tuple[str, str]:
    """Return the name, and the name or folder, of the encoder of an index."""
    made = str(index.about.model)
    known = [name for name, model in named.items() if stored_name(model) == made]
    if known:  # the same encoder, which is served in another way
        name = _variant(known[0], index, encoders[known[0]])
    else:
        name = Path(made).name if Path(made).is_dir() else made
    if name in named:
        raise UserError(f"two models are named {name}; give one another name: NAME={made}")
    return name, made


def _variant(name: str, index: Index, encoder: SentenceTransformer) -> str:
    """Return the name of the encoder of an index that is served in another way under a name."""
    tokens = index.about.memory_tokens
    as_many = tokens in (None, memory_tokens_of(encoder))
    return f"{name}, unmerged" if as_many else f"{name}@{tokens} tokens"
