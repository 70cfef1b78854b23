"""Compiled encoders: the body is a graph of ONNX Runtime or OpenVINO, all else is stock.

The folder is laid out as sentence-transformers looks for it with ``backend=``. Its
loaders are optimum's, whose releases do not run with the transformers that exports;
here the graph is run by transformers' own :class:`ExportedModel`.
"""

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from sentence_transformers.base.modules.transformer import Transformer
from torch import nn
from transformers import PreTrainedConfig

from llm2comp.batching import TokenBatched
from llm2comp.errors import UserError

if TYPE_CHECKING:
    from transformers.exporters.base import ExportedModel

Backend = Literal["onnx", "openvino"]
PACKAGES: dict[Backend, Sequence[str]] = {
    "onnx": ("nncf", "onnx", "onnxscript", "onnxruntime"),
    "openvino": ("nncf", "openvino"),
}
MANIFEST = "export.json"


def backend_of(folder: Path) -> Backend | None:
    """Return what an encoder folder is compiled for; None if it is not."""
    backends: tuple[Backend, ...] = get_args(Backend)
    return next((name for name in backends if (folder / name / MANIFEST).is_file()), None)


def require(backend: Backend) -> None:
    """Check that a back end is installed, and a transformers that exports and runs its graphs.

    Raises:
        UserError: if not.
    """
    exports = find_spec("transformers.exporters") and find_spec("transformers.exporters.runners")
    if not exports or not all(map(find_spec, PACKAGES[backend])):
        raise UserError(f"{backend} is not installed: pip install 'llm2comp[{backend}]'")


class Graph(nn.Module):
    """A compiled body, in the place of the transformers model that it was made of."""

    def __init__(self, exported: "ExportedModel", backend: Backend) -> None:
        super().__init__()
        self.exported = exported
        self.backend = backend
        self.config = cast(PreTrainedConfig, exported.config)
        self.inputs = frozenset(next(iter(exported.components.values())).metadata.kwargs)

    def forward(self, **features: Any) -> Any:
        """Return what the transformers model returns."""
        return self.exported(**{name: features[name] for name in self.inputs})

    def save_pretrained(self, folder: str, **_: Any) -> None:
        """Write the graph where sentence-transformers looks for it, and the configuration."""
        self.exported.save_pretrained(Path(folder) / self.backend)
        self.config.save_pretrained(folder)


class _CompiledTransformer(Transformer):
    def _load_model(self, model_name_or_path: str, *_: Any, **__: Any) -> Any:
        from transformers.exporters.base import ExportedModel

        folder = Path(model_name_or_path)
        backend = backend_of(folder)
        assert backend is not None
        exported = ExportedModel.from_pretrained(folder / backend, device="cpu")
        graph = Graph(exported, backend)
        # Scores are kept by a hash of a model's state, and the runtime hides the weights.
        graph.register_buffer("digest", _digest(folder / backend))
        return graph


class CompiledEncoder(TokenBatched):
    """A model whose body is compiled; OpenVINO has its best rate at 1,024 tokens a batch."""

    tokens_a_text = 32


def load(folder: Path) -> CompiledEncoder:
    """Load a compiled encoder folder, for the processor.

    Raises:
        UserError: if the folder's back end is not installed.
    """
    backend = backend_of(folder)
    assert backend is not None, f"{folder} is not compiled"
    require(backend)
    stock = f"{Transformer.__module__}.{Transformer.__qualname__}"
    return CompiledEncoder._load_with_module_classes(
        str(folder), {stock: _CompiledTransformer}, device="cpu", local_files_only=True
    )


def _digest(folder: Path) -> torch.Tensor:
    whole = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        with file.open("rb") as stream:
            whole.update(hashlib.file_digest(stream, "sha256").digest())
    return torch.frombuffer(bytearray(whole.digest()), dtype=torch.uint8)
