"""Upload an encoder folder to the Hugging Face hub, in one commit."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants

from llm2comp.data.sources import HUB_ID
from llm2comp.errors import UserError, counted, one_line
from llm2comp.evaluation.store import ResultStore
from llm2comp.model.folder.card import known_licence
from llm2comp.publishing.card import card_on_hub
from llm2comp.publishing.checks import encoder_folder, files_of, require_publishable
from llm2comp.publishing.scores import mteb_results
from llm2comp.utils.checksums import CARD, CHECKSUMS, with_content

logger = logging.getLogger(__name__)

OF_AN_ENCODER = {
    ".bin", ".data", ".jinja", ".json", ".model", ".onnx", ".safetensors", ".sha256", ".txt", ".xml"
}  # fmt: skip
"""Endings of files that an encoder that was there before may have left, and a client may read."""
VOCABULARIES = {"merges.txt", "vocab.txt"}
"""The texts that a tokenizer reads. Others are documents."""
MODULE = re.compile(r"\d+_\w+|adapter|onnx|openvino")
"""Folders of an encoder. JSON in others is not a client's."""
TOO_LARGE = ("too large", "storage limit", "quota", "exceeds")
"""Parts of the messages with which the hub refuses a size."""


def push(
    name: str,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
) -> str:
    """Check an encoder folder, and upload it to the hub with its scores on MTEB in its card.

    The files that arrive are those of the folder, but for the card and its checksum. Files of an
    encoder that was there before and are not in the folder are deleted in the same commit, because
    a client might load them.

    Args:
        name: encoder folder or released name.
        repo: `owner/name` on the hub. It is made if it is not there.
        private: make the repository private. One that is there must be private already.
        revision: branch to commit to, made if it is not there; None is the main one.
        message: of the commit; by default it has the name of the encoder.

    Returns:
        The address of the commit.

    Raises:
        UserError: if the folder does not pass a check, or the hub refuses it or cannot be reached.
            The branch is then as it was.
    """
    if not HUB_ID.fullmatch(repo) or ":" in repo:
        raise UserError(f"{repo!r} is no name on the hub; give OWNER/NAME")
    folder, lineage = encoder_folder(name)
    results = mteb_results(name, folder, lineage, ResultStore())
    card = card_on_hub(folder / CARD, repo, revision, results, known_licence(lineage))
    require_publishable(name, folder, lineage)
    contents = _contents(folder, str(card).encode("utf-8"))
    _say_what(repo, contents, len(results), has_licence=card.data.get("license") is not None)
    api = HfApi()
    with _one_line_errors(repo):
        api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise UserError(
                f"{repo} is there and is public; make it private at "
                f"{constants.ENDPOINT}/{repo}/settings, or leave out --private"
            )
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        stale = [
            file
            for file in api.list_repo_files(repo, revision=revision)
            if file not in contents and _is_of_an_encoder(PurePosixPath(file))
        ]
        done = api.create_commit(
            repo,
            [
                *(CommitOperationDelete(file, is_folder=False) for file in stale),
                *(CommitOperationAdd(path, content) for path, content in contents.items()),
            ],
            commit_message=message or f"Upload {lineage.name} with llm2comp",
            revision=revision,
        )
    if stale:
        logger.info("%s: deleted of the encoder before: %s", repo, ", ".join(stale))
    return str(done.commit_url)


def _is_of_an_encoder(file: PurePosixPath) -> bool:
    if file.suffix == ".txt":
        return file.name in VOCABULARIES
    if file.suffix == ".json" and len(file.parts) > 1:
        return MODULE.fullmatch(file.parts[0]) is not None
    return file.suffix in OF_AN_ENCODER


def _contents(folder: Path, card: bytes) -> dict[str, Path | bytes]:
    """Return what is uploaded, by its path on the hub: files, and the content of others."""
    files: dict[str, Path | bytes] = {
        file.relative_to(folder).as_posix(): file for file in files_of(folder)
    }
    files[CARD] = card
    if CHECKSUMS in files:
        files[CHECKSUMS] = with_content(folder, CARD, card).encode("utf-8")
    return files


def _say_what(
    repo: str, contents: dict[str, Path | bytes], results: int, *, has_licence: bool
) -> None:
    sizes = {
        path: len(content) if isinstance(content, bytes) else content.stat().st_size
        for path, content in contents.items()
    }
    for path, size in sizes.items():
        logger.info("%14s bytes  %s", f"{size:,}", path)
    total = sum(sizes.values()) / 1e6
    logger.info(
        "uploading %s, %s MB, to %s/%s",
        counted(len(sizes), "file"),
        f"{total:,.1f}",
        constants.ENDPOINT,
        repo,
    )
    if not results:
        logger.info("the card has no scores of MTEB; `llm2comp evaluate` stores them")
    if not has_licence:
        logger.info("the card has no licence; write `license: ...` into the folder's %s", CARD)


@contextmanager
def _one_line_errors(repo: str) -> Iterator[None]:
    """Turn every error of the hub's client in a block into one line.

    Raises:
        UserError: for any error.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the libraries below have exceptions of their own
        raise UserError(f"{repo}: {_explain(error, repo)}") from error


def _explain(error: Exception, repo: str) -> str:
    """Return what went wrong at the hub, and the remedy."""
    response = _response(error)
    said = one_line(getattr(error, "server_message", None) or error)
    if any(part in one_line(error, limit=None).lower() for part in TOO_LARGE):
        limits = f"{constants.ENDPOINT}/docs/hub/storage-limits"
        return f"the hub refuses the size of the upload ({said}); its limits are at {limits}"
    if isinstance(error, ValueError):  # as a card, or a name, that the hub does not take
        return f"the hub refuses it ({said}); mend it, and repeat"
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set; unset it"
    if response is None:
        reason = type(error.__cause__ or error).__name__
        return f"{constants.ENDPOINT} cannot be reached ({reason}); check the network, and repeat"
    remedies = {
        401: "log in with `hf auth login`, or set HF_TOKEN to a valid token",
        403: "take a token with the right to write there, or a repository of yours",
        404: f"check the owner and the name of {repo!r}",
    }
    remedy = remedies.get(response.status_code, "repeat it later")
    return f"the hub refuses it with status {response.status_code} ({said}); {remedy}"


def _response(error: BaseException | None) -> Any:
    """Return the answer of the hub that an error, or what caused it, is about."""
    while error is not None:
        if (response := getattr(error, "response", None)) is not None:
            return response
        error = error.__cause__ or error.__context__
    return None
