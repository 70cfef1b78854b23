"""The released encoder by engine and precision: speed, share of the roofline, cosines, score.

PyTorch, ONNX Runtime and OpenVINO, each in float32, with int8 weights, and with int8 activations
too, against stock sentence-transformers in float32. All run in turn with one thread, and the table
counts processor time, so that other work on the machine weighs little. A third each of the texts
are sentences, Wikipedia passages and news articles.

The roofline is the float32 products alone, by MKL and by oneDNN. With `--score` each encoder is
scored on STSBenchmark, which takes a minute or more for each.

An environment variable hides instructions from PyTorch and OpenVINO. ONNX Runtime takes what the
processor has.

    ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI python benchmarks/compiled.py
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python benchmarks/compiled.py
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import in_turn, report, roofline
from sentence_transformers import SentenceTransformer

from llm2comp.data import sample
from llm2comp.evaluation import runner, suites
from llm2comp.inference import compiled
from llm2comp.inference.load import load_in
from llm2comp.inference.precision import smallest_cosine
from llm2comp.model import released
from llm2comp.model.attention import use_sdpa
from llm2comp.model.encoder import encoder_body
from llm2comp.utils.choices import Backend
from llm2comp.utils.hardware import retain_freed_memory
from llm2comp.utils.linear import OneDnnLinear

MODEL = "smollm2-135m-llm2comp"
SOURCES = ("nlp-corpus-sentences", "boolq-passages", "news-passages")
ROUNDS = 3
STOCK, MKL, ONEDNN = "stock float32", "float32 products, MKL", "float32 products, oneDNN"
GROUP = 32
"""Values that share a scale where OpenVINO quantises activations."""


def main() -> None:
    """Export, measure, print a table, write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=96)
    parser.add_argument("--score", action="store_true", help="on STSBenchmark, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    retain_freed_memory()  # as the command line does
    each = -(-options.texts // len(SOURCES))
    texts = [text for name in SOURCES for text in sample.draw(name, each, seed=0).texts]
    with tempfile.TemporaryDirectory() as scratch:
        models = _models(Path(scratch), texts)
        runs: dict[str, Callable[[], Any]] = {
            name: lambda model=model: model.encode(texts) for name, model in models.items()
        }
        seconds = in_turn(runs | _products(texts), ROUNDS, time.process_time)
        exact = models[STOCK].encode(texts)
        rows: list[list[object]] = []
        for name, taken in seconds.items():
            speeds = [len(texts) / taken, seconds[STOCK] / taken]
            shares = [seconds[MKL] / taken, seconds[ONEDNN] / taken]
            cosine: object = ""
            score: object = ""
            if name in models:
                cosine = smallest_cosine(exact, models[name].encode(texts))
                score = _score(models[name], name) if options.score else ""
            rows.append([name, *speeds, *shares, cosine, score])
    columns = ["", "texts/s", "x stock", "of MKL's products", "of oneDNN's products"]
    report("compiled", [*columns, "smallest cosine", "STSBenchmark"], rows)


def _models(scratch: Path, texts: list[str]) -> dict[str, SentenceTransformer]:
    folder = str(released.fetch(MODEL))
    models = {
        STOCK: SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": torch.float32}),
        "PyTorch float32": load_in(MODEL).to("cpu"),
        "PyTorch int8 activations": _quantized(load_in(MODEL).to("cpu")),
    }
    import onnxruntime

    one_thread = onnxruntime.SessionOptions()
    one_thread.intra_op_num_threads = 1
    for name, dynamic, int8 in (
        ("float32", False, False),
        ("int8 weights", False, True),
        ("int8 activations", True, False),
    ):
        out = _export(scratch / f"onnx {name}", texts, "onnx", int8=int8, dynamic=dynamic)
        models[f"ONNX Runtime {name}"] = _loaded(out, session_options=one_thread)
    exact = _export(scratch / "openvino float32", texts, "openvino")
    int8 = _export(scratch / "openvino int8", texts, "openvino", int8=True)
    for name, out, group in (
        ("float32", exact, 0),
        ("int8 weights", int8, 0),
        ("int8 activations", int8, GROUP),
    ):
        config = {
            "INFERENCE_NUM_THREADS": 1,
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": group,
            "PERFORMANCE_HINT": "LATENCY",
        }
        models[f"OpenVINO {name}"] = _loaded(out, config=config)
    return models


def _quantized(model: SentenceTransformer) -> SentenceTransformer:
    """Let PyTorch quantise weights and activations of linear layers; it has no weights alone."""
    for module in encoder_body(model).modules():
        if isinstance(module, OneDnnLinear):
            module.__class__ = torch.nn.Linear
    with warnings.catch_warnings(action="ignore"):
        model[0].model = torch.ao.quantization.quantize_dynamic(
            encoder_body(model), {torch.nn.Linear}, dtype=torch.qint8
        )
    return model


def _export(
    out: Path, texts: list[str], to: Backend, *, int8: bool = False, dynamic: bool = False
) -> Path:
    """Export as `llm2comp export` does, without its check; `dynamic` is ONNX Runtime's."""
    model = load_in(MODEL).to("cpu")
    use_sdpa(encoder_body(model))
    exported = compiled.compile_body(model, texts, to, int8)
    if dynamic:
        from transformers import exporters

        quantizer = exporters.OnnxRuntimeQuantizer(
            exporters.OnnxRuntimeDynamicConfig(per_channel=True)
        )
        (component,) = exported.components.values()
        component.program = quantizer.quantize(component.program, {}, exporters.ExportFormat.ONNX)
    model[0].model = compiled.Graph(exported, to)
    model.save_pretrained(str(out), create_model_card=False)
    return out


def _loaded(folder: Path, **options: Any) -> SentenceTransformer:
    """Load an export with options of its engine."""
    from transformers.exporters.base import ExportedModel

    model = compiled.load(folder)
    graph = model[0].model
    graph.exported = ExportedModel.from_pretrained(folder / graph.backend, device="cpu", **options)
    return model


def _products(texts: list[str]) -> dict[str, Callable[[], None]]:
    """Return the roofline's runs; attention's products are by MKL in both."""
    runs: dict[str, Callable[[], None]] = {}
    for name, kind in ((MKL, torch.nn.Linear), (ONEDNN, OneDnnLinear)):
        model = load_in(MODEL).to("cpu")
        for module in encoder_body(model).modules():
            if isinstance(module, torch.nn.Linear):
                module.__class__ = kind
        parts = (
            roofline.linear_layers(model, torch.float32),
            roofline.attention(model, torch.float32),
        )
        tokens = model.preprocess(texts)["attention_mask"].sum(1).numpy()

        def run(parts: Any = parts, tokens: Any = tokens) -> None:
            for part in parts:
                part(tokens)

        runs[name] = run
    return runs


def _score(model: SentenceTransformer, name: str) -> float:
    (score,) = runner.evaluate(model, name, suites.tasks(["STSBenchmark"]))
    return score.main_score


if __name__ == "__main__":
    main()
