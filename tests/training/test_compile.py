"""Compiled blocks train as blocks that are not compiled."""

import json
import multiprocessing
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from llm2comp import recipe
from llm2comp.errors import UserError
from llm2comp.training import pipeline, run_folder


def losses(recipe_file: Path, folder: Path, *overrides: str) -> list[float]:
    """Train stage 1 alone, for four steps without anything random."""
    fixed = ["pretext.steps=4", "pretext.lora.dropout=0.0", "backbone.dtype=float32"]
    settings = recipe.load_recipe(recipe_file, [*fixed, *overrides])
    pipeline.train(settings.model_copy(update={"stages": settings.stages[:1]}), folder)
    events = map(json.loads, (folder / run_folder.LOG).open())
    return [event["loss"] for event in events if "loss" in event]


@pytest.mark.slow
@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.exhaustive)]
)
@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_compiled_blocks_have_the_same_losses(
    tiny_recipe: Path, tmp_path: Path, backend: str
) -> None:
    """`aot_eager` traces and differentiates as `inductor` does, and writes no C++."""
    plain = losses(tiny_recipe, tmp_path / "plain")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        # In a new process: the compiler imports setuptools, which fails after other tests' imports.
        compiled = process.submit(
            compiled_losses, tiny_recipe, tmp_path / "compiled", backend
        ).result()
    assert len(plain) == 2
    assert compiled == pytest.approx(plain, rel=1e-3)


def compiled_losses(recipe_file: Path, folder: Path, backend: str) -> list[float]:
    torch.nn.Module.compile = partialmethod(torch.nn.Module.compile, backend=backend)
    found = losses(recipe_file, folder, "pretext.compile=true")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    return found


def test_a_missing_compiler_is_an_error_of_one_line(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="there is no no-such-compiler"):
        losses(tiny_recipe, tmp_path / "run", "pretext.compile=true")


def test_the_blocks_of_every_stage_are_compiled(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []

    def record(module: torch.nn.Module, *_: Any, **__: Any) -> None:
        compiled.append(type(module).__name__)

    monkeypatch.setenv("CXX", sys.executable)  # anything that can be found
    monkeypatch.setattr(torch.nn.Module, "compile", record)
    names = ("pretext", "unsupervised", "supervised")
    keys = [f"{name}.{key}" for name in names for key in ("compile=true", "steps=1")]
    settings = recipe.load_recipe(tiny_recipe, ["backbone.dtype=float32", *keys])
    pipeline.train(settings, tmp_path / "run")
    layers = AutoConfig.from_pretrained(settings.backbone.name).num_hidden_layers
    assert compiled == ["LlamaDecoderLayer"] * (len(names) * layers)
