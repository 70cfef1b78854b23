"""The wheel: small enough for a package index, and whole where pip installs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import llm2comp
from llm2comp.model import released

ROOT = Path(__file__).parents[1]
LARGEST = 100_000_000
"""Bytes that package indexes take."""


def pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.exhaustive
def test_the_wheel_is_small_and_installs(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    pip("wheel", ROOT, "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"llm2comp-{llm2comp.__version__}-py3-none-any.whl"
    assert wheel.stat().st_size < LARGEST
    pip("install", wheel, "--no-deps", "--no-index", "--target", tmp_path / "site")
    installed = tmp_path / "site" / "llm2comp"
    for folder, there in (
        (ROOT / "src" / "llm2comp", installed),
        (ROOT / "recipes", installed / "shipped_recipes"),
    ):
        files = [f for f in folder.rglob("*") if f.is_file() and "__pycache__" not in f.parts]
        missing = [f for f in files if not (there / f.relative_to(folder)).is_file()]
        assert not missing
    command = [sys.executable, "-m", "llm2comp", "data", "show", "smollm2-135m", "--help"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    code = "from llm2comp.model import released; print(released.__file__, released.names())"
    told = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert told.stdout.split() == [
        str(installed / "model" / "released.py"),
        *str(released.names()).split(),
    ]
