"""The function of the Python API that publishes an encoder."""

from __future__ import annotations

from pathlib import Path


def push(
    model: str | Path, repo: str, *, private: bool = False, revision: str | None = None,
    message: str | None = None,
) -> str:  # fmt: skip
    """Upload an encoder folder to the Hugging Face hub, and return the address of the commit.

    The folder is checked first: its checksums, that it names no path of this machine, and that
    stock sentence-transformers computes the embeddings that were saved with it. The card gets the
    encoder's name on the hub, and its scores on MTEB that `evaluate` or `train` stored. The other
    files arrive as they are. Files of an encoder that was there before are deleted.

    Args:
        model: encoder folder or released name.
        repo: `owner/name` on the hub. It is made if it is not there.
        private: make the repository private. One that is there must be private already.
        revision: branch to commit to, made if it is not there; `None` is the main one.
        message: of the commit.

    Raises:
        UserError: if the folder does not pass a check, or the hub refuses the upload or cannot be
            reached. The branch is then as it was.

    Examples:
        >>> llm2comp.push("runs/first/model", "me/first", private=True)  # doctest: +SKIP
        'https://huggingface.co/me/first/commit/...'
    """
    from llm2comp.publishing.push import push as push_folder

    return push_folder(str(model), repo, private=private, revision=revision, message=message)
