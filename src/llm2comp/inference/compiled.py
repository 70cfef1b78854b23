"""Compiled encoders: the body is a graph of ONNX Runtime or OpenVINO, the other modules are stock.

The folder has the layout that `SentenceTransformer(folder, backend=...)` expects. That call loads
the graph by optimum, whose releases do not work with the transformers version that exports, so
this module runs the graph by transformers' own `ExportedModel`.
"""

import hashlib
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules.transformer import Transformer
from torch import nn
from torch.export import Dim
from transformers import PreTrainedConfig

from llm2comp.errors import UserError
from llm2comp.inference.token_batching import TokenBatched
from llm2comp.model.encoder import encoder_body
from llm2comp.utils.choices import Backend

if TYPE_CHECKING:
    from transformers.exporters.base import ExportedModel

PACKAGES: dict[Backend, Sequence[str]] = {
    "onnx": ("nncf", "onnx", "onnxscript", "onnxruntime"),
    "openvino": ("nncf", "openvino"),
}
MANIFEST = "export.json"


def backend_of(folder: Path) -> Backend | None:
    """Return the back end that an encoder folder is compiled for; None if it is not compiled."""
    backends: tuple[Backend, ...] = get_args(Backend)
    return next((name for name in backends if (folder / name / MANIFEST).is_file()), None)


def require(backend: Backend) -> None:
    """Check that a back end is installed, with a transformers version that exports to it.

    Raises:
        UserError: if something is missing.
    """
    exports = find_spec("transformers.exporters") and find_spec("transformers.exporters.runners")
    if not exports or not all(map(find_spec, PACKAGES[backend])):
        raise UserError(f"{backend} is not installed: pip install 'llm2comp[{backend}]'")


class Graph(nn.Module):
    """A compiled body, which replaces the transformers model that it was compiled from."""

    def __init__(self, exported: "ExportedModel", backend: Backend) -> None:
        super().__init__()
        self.exported = exported
        self.backend = backend
        self.config = cast(PreTrainedConfig, exported.config)
        self.inputs = frozenset(next(iter(exported.components.values())).metadata.kwargs)

    def forward(self, **features: Any) -> Any:
        """Return the output of the transformers model for the same features."""
        return self.exported(**{name: features[name] for name in self.inputs})

    def save_pretrained(self, folder: str, **_: Any) -> None:
        """Write the graph to where sentence-transformers expects it, and the configuration."""
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
        # Scores are stored by a hash of the model's state, and a graph shows no weights.
        graph.register_buffer("digest", _digest(folder / backend))
        return graph


class CompiledEncoder(TokenBatched):
    """A model with a compiled body; OpenVINO is fastest with 1,024 tokens per batch."""

    tokens_per_text = 32


CompiledEncoder.__name__ = SentenceTransformer.__name__  # see TokenBatched


def load(folder: Path) -> CompiledEncoder:
    """Load a compiled encoder folder, for the processor.

    Raises:
        UserError: if the folder's back end is not installed.
    """
    backend = backend_of(folder)
    assert backend is not None, f"{folder} is not compiled"
    require(backend)
    names = (
        "sentence_transformers.models.Transformer",
        f"{Transformer.__module__}.{Transformer.__qualname__}",  # in folders of older versions
    )
    return CompiledEncoder._load_with_module_classes(
        str(folder),
        dict.fromkeys(names, _CompiledTransformer),
        device="cpu",
        local_files_only=True,
    )


def _digest(folder: Path) -> torch.Tensor:
    """Return a hash of all files of a folder, `(32,)` of uint8."""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


def compile_body(encoder: SentenceTransformer, texts: list[str], to: Backend, int8: bool) -> Any:
    """Compile an encoder's body.

    Args:
        encoder: in PyTorch and float32.
        texts: examples; the exporter traces the first three.
        to: the back end.
        int8: whether to store the weights in 8 bits.

    Returns:
        An `ExportedModel` of transformers.
    """
    exporters: Any = import_module("transformers.exporters")  # since 5.23; loads lazily, untyped
    exporter, config, quantizer = {
        "onnx": (exporters.OnnxExporter, exporters.OnnxConfig, exporters.NNCFOnnxQuantizer),
        "openvino": (
            exporters.OpenVINOExporter,
            exporters.OpenVINOConfig,
            exporters.NNCFOpenVINOQuantizer,
        ),
    }[to]
    # Only weights are quantised, which costs smollm2-135m-llm2comp 0.1 points of STSBenchmark.
    # 8-bit activations would cost 1.0 points with NNCF's calibration, and 3.1 with ONNX Runtime's
    # dynamic quantisation.
    weights = quantizer(exporters.NNCFWeightCompressionConfig()) if int8 else None
    inputs = dict(encoder.tokenizer(texts[:3], padding=True, return_tensors="pt"))
    shapes = {name: {0: Dim.DYNAMIC, 1: Dim.DYNAMIC} for name in inputs}
    with redirect_stdout(sys.stderr):  # torch and NNCF print their progress
        return exporter().export(
            encoder_body(encoder), inputs, config(dynamic_shapes=shapes, quantizer=weights)
        )
