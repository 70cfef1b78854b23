"""The part of the Python API that gives encoders away: `export` and `push`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llm2comp.errors import UserError
from llm2comp.utils.files import user_path

if TYPE_CHECKING:
    from llm2comp.inference.last_token import Difference
    from llm2comp.utils.choices import Export


def export(
    model: str | Path, to: Export, out: str | Path, *, int8: bool = False, dim: int | None = None,
    memory_tokens: int | None = None,
) -> Difference:  # fmt: skip
    """Write an encoder for another runtime or for servers, and return how much the export differs.

    The export is compared with the encoder in PyTorch and float32, by its embeddings and, if it is
    compiled, by its score on STSBenchmark. An export that differs too much is not written.

    Args:
        model: name or folder that `load` takes.
        to: `"onnx"` or `"openvino"` to compile it; `"last-token"` for servers that pool by
            themselves, such as vLLM (one memory token and causal attention); `"multi-vector"` for
            late interaction (several memory tokens).
        out: encoder folder to write.
        int8: store the weights in 8 bits, of a compiled encoder.
        dim: as in `encode`, of a compiled encoder. The folder has a module more, which all clients
            read.
        memory_tokens: as in `load`. The folder appends no others.

    Raises:
        UserError: if the encoder cannot be loaded or has no such form, the backend is not
            installed, `out` holds something else, or the export differs too much.

    Examples:
        >>> check = llm2comp.export("smollm2-135m-llm2comp", "onnx", "encoder-onnx")
        >>> check.passed
        True
        >>> model = llm2comp.load("encoder-onnx")
    """
    from llm2comp.evaluation.checked_export import export as compile_encoder
    from llm2comp.inference.last_token import export as pool_last_token
    from llm2comp.inference.multi_vector.export import export as write_multi_vector

    if to in ("last-token", "multi-vector") and (int8 or dim is not None):
        raise UserError("int8 and dim are for an encoder that is compiled; leave them out")
    if to == "last-token":
        return pool_last_token(str(model), user_path(out), memory_tokens)
    if to == "multi-vector":
        return write_multi_vector(str(model), user_path(out), memory_tokens)
    return compile_encoder(
        str(model), to, user_path(out), int8=int8, dim=dim, memory_tokens=memory_tokens
    )


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
