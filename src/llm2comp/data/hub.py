"""Datasets and models of the Hugging Face hub: stream rows, download weights, check names."""

import errno
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import datasets
import huggingface_hub
from huggingface_hub import HfApi, constants, errors

from llm2comp.data.files import NumberedRow
from llm2comp.data.formats import parts
from llm2comp.errors import UserError, one_line
from llm2comp.utils.files import user_path

logger = logging.getLogger("llm2comp")

REACH_SECONDS = 10.0
"""How long the hub may take to answer."""
HOME = "SENTENCE_TRANSFORMERS_HOME"
"""Environment variable with the folder into which sentence-transformers downloads models."""
MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "README.md")
"""The files of a model that transformers reads, and its card, which has the licence; folders of
other formats are left out."""


@dataclass(frozen=True)
class Located:
    """Where a dataset of the hub is read.

    Attributes:
        path: its name, or a folder in the hub's local cache.
        commit: its commit.
    """

    path: str
    commit: str | None


def read(
    name: str,
    split: str,
    revision: str | None,
    choose: Callable[[Sequence[str]], list[str]],
) -> Iterator[NumberedRow]:
    """Yield the rows of a dataset with their numbers, without downloading it first.

    Args:
        name: `owner/name` or `owner/name:configuration`.
        split: the split of the dataset.
        revision: branch, tag or commit; by default the main branch.
        choose: returns those of the columns that are read, if they are known before the rows are.

    Raises:
        UserError: if the hub has no such dataset, configuration or split, or can neither be
            reached nor has left all of it in its local cache.
    """
    repository, _, configuration = name.partition(":")
    located = locate_dataset(repository, revision)
    online = located.path == repository
    try:
        builder = datasets.load_dataset_builder(
            located.path, configuration or None, revision=located.commit if online else None
        )
        parts.require_all_parts((builder.config.data_files or {}).get(split, []), name)
        stream = builder.as_streaming_dataset(split=split)
        names = stream.column_names
        if names and hasattr(builder.config, "columns"):  # a file of columns, such as Parquet
            builder.config.columns = choose(names)
            builder.info.features = None
            stream = builder.as_streaming_dataset(split=split)
        unread: dict[str, object] = dict.fromkeys(names or [])
        for number, row in enumerate(stream, start=1):
            yield number, unread | row
    except ValueError as error:  # datasets raises it for an unknown configuration or split
        raise UserError(f"{name}, split {split}: {one_line(error)}") from error
    except OSError as error:
        raise UserError(f"{name}: reading from the hub failed ({one_line(error)})") from error


def locate_dataset(name: str, revision: str | None) -> Located:
    """Return where a dataset is read: from the hub or, if it cannot be asked, from its local cache.

    Args:
        name: `owner/name`.
        revision: branch, tag or commit; by default the main branch.

    Raises:
        UserError: if it is in neither.
    """
    try:
        return Located(name, require_dataset(name, revision))
    except UserError:
        folder = _cached_dataset(name, revision)
        if folder is None:
            raise
    logger.info("%s: the hub cannot be asked; commit %s is in its cache", name, folder.name)
    return Located(str(folder), folder.name)


def _cached_dataset(name: str, revision: str | None) -> Path | None:
    """Return the folder of a dataset in the hub's local cache, or None if it is not there."""
    try:
        found = huggingface_hub.snapshot_download(
            name, repo_type="dataset", revision=revision, local_files_only=True
        )
    except (OSError, ValueError):
        return None
    return Path(found)


def require_model(name: str) -> None:
    """Check that a model is in the hub's local cache, or that the hub has it.

    Raises:
        UserError: if neither is true.
    """
    if cached_model(name) is None:
        with _hub_errors("model", name):
            HfApi().model_info(name, timeout=REACH_SECONDS)


def require_dataset(name: str, revision: str | None = None) -> str | None:
    """Check that the hub has a dataset, and return its commit.

    Args:
        name: `owner/name`.
        revision: branch, tag or commit; by default the main branch.

    Raises:
        UserError: if it does not, or cannot be reached.
    """
    with _hub_errors("dataset", name, revision):
        return HfApi().dataset_info(name, revision=revision, timeout=REACH_SECONDS).sha


def cached_model(name: str, revision: str | None = None) -> Path | None:
    """Return the folder of a model in a local cache of the hub, or None if it is in none.

    Its name is the commit. sentence-transformers has a cache of its own if `HOME` is set.

    Args:
        name: hub id.
        revision: branch, tag or commit; by default the main branch.
    """
    for cache in dict.fromkeys((_home(), None)):
        for file in ("config.json", "modules.json"):  # static models lack the first
            try:
                found = huggingface_hub.try_to_load_from_cache(
                    name, file, cache_dir=cache, revision=revision
                )
            except errors.HFValidationError:
                return None
            if isinstance(found, str):
                return Path(found).parent
    return None


def has_file(name: str, file: str) -> bool:
    """Return whether a model of the hub has a file; False if it is not here, and the hub is silent.

    Args:
        name: hub id.
        file: path in the model. It is downloaded if it is not there.
    """
    cache = _cache_of(name)
    found = huggingface_hub.try_to_load_from_cache(name, file, cache_dir=cache)
    if found is not None:  # a path, or a mark that the commit has no such file
        return isinstance(found, str)
    try:
        with suppress(errors.EntryNotFoundError):  # the download then marks that there is none
            # It asks once. A download of a file that is not here asks seven times.
            url = huggingface_hub.hf_hub_url(name, file)
            huggingface_hub.get_hf_file_metadata(url, timeout=REACH_SECONDS)
        huggingface_hub.hf_hub_download(name, file, cache_dir=cache, etag_timeout=REACH_SECONDS)
    except Exception as error:  # the HTTP library has exceptions of its own
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        return False
    return True


def _cache_of(name: str, revision: str | None = None) -> str | None:
    """Return the cache that has a model, or into which sentence-transformers would download it."""
    folder = cached_model(name, revision)
    return _home() if folder is None else str(folder.parents[2])


def _home() -> str | None:
    """Return the cache of sentence-transformers' own, if it has one."""
    home = os.environ.get(HOME)
    return None if home is None else str(user_path(home))


def download_model(
    name: str, revision: str | None = None, *, code: bool = False, weights: bool = True
) -> Path:
    """Return the folder of a model in the hub's local cache, and download what it lacks.

    Without a network, or with `HF_HUB_OFFLINE`, it is the copy that an earlier download left.

    Args:
        name: hub id.
        revision: branch, tag or commit; by default the main branch.
        code: whether to download the Python files of the model too.
        weights: whether to download its weights.

    Returns:
        A folder whose name is the commit.

    Raises:
        UserError: if the hub has no such model or revision that the user may read, or there is
            neither a network nor a whole copy in the cache.
    """
    wanted = [*MODEL_FILES, *(["*.py"] if code else [])]
    if not weights:
        wanted.remove("*.safetensors")
        return _snapshot(name, revision, wanted)
    folder = _snapshot(name, revision, wanted)
    if any(folder.glob("*.safetensors")):
        return folder
    return _snapshot(name, folder.name, [*wanted, "pytorch_model*.bin"])


def download_encoder(
    name: str, revision: str | None = None, *, code: bool = False, compiled: bool = False
) -> Path:
    """Return the folder of a sentence-transformers model, as `download_model` does.

    The folders of its modules, such as `1_Pooling` and `2_Dense`, are downloaded too.

    Args:
        name: hub id.
        revision: branch, tag or commit; by default the main branch.
        code: whether to download the Python files of the model too.
        compiled: whether to download all files, of which those of the compiled body are some.

    Raises:
        UserError: as `download_model`.
    """
    cache = _cache_of(name, revision)
    if compiled:
        return _snapshot(name, revision, ["*"], (), cache)
    wanted = [*MODEL_FILES, "[0-9]*_*/*.bin", *(["*.py"] if code else [])]
    unwanted = ["onnx/*", "openvino/*", "consolidated*"]
    folder = _snapshot(name, revision, wanted, unwanted, cache)
    if any(folder.glob("*.safetensors")) or any(folder.glob("0_*/*")):
        return folder
    return _snapshot(name, folder.name, [*wanted, "pytorch_model*.bin"], unwanted, cache)


# "consolidated" files hold the same weights once more, under other names.
def _snapshot(
    name: str,
    revision: str | None,
    files: list[str],
    unwanted: Sequence[str] = ("*/*", "consolidated*"),
    cache: str | None = None,
) -> Path:
    """Download the files of a model that match a pattern, and return their folder."""
    with _hub_errors("model", name, revision):
        return Path(
            huggingface_hub.snapshot_download(
                name,
                revision=revision,
                allow_patterns=files,
                ignore_patterns=list(unwanted),
                cache_dir=cache,
            )
        )


@contextmanager
def _hub_errors(kind: str, name: str, revision: str | None = None) -> Iterator[None]:
    """Turn any error of the hub's client in a block into one line."""
    try:
        yield
    except errors.GatedRepoError as error:
        raise UserError(
            f"{kind} {name!r} is gated: accept its terms at {constants.ENDPOINT}/{name}, and log "
            "in with `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"{kind} {name!r} has no revision {revision!r}; give a branch, a tag or a commit"
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise UserError(
            f"the hub has no {kind} {name!r} that you may read, and there is no such file or "
            "folder; check the name, or log in with `hf auth login`"
        ) from error
    except Exception as error:  # the HTTP library below has exceptions of its own
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise UserError(
                f"the hub refuses your token for {kind} {name!r} (status {status}); log in again "
                "with `hf auth login`, or unset HF_TOKEN"
            ) from error
        at = "" if revision is None else f" at revision {revision!r}"
        raise UserError(
            f"there is no whole {name!r}{at} on this machine, and the hub cannot be reached to "
            f"look for it ({_reason(error)}); check the name and the network, or use a local "
            f"{kind} or one that `llm2comp data list` shows"
        ) from error


def _reason(error: Exception) -> str:
    """Return why the hub cannot be reached."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    return type(error.__cause__ or error).__name__
