"""Imports point down, and a package's ``__init__`` imports nothing."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "llm2comp"
LAYERS = [
    "cli",
    "api",
    "api_bulk",
    "api_index",
    "api_mining",
    "api_planning",
    "api_publishing",
    "api_analysis",
    "serving",
    "publishing",
    "analysis",
    "training",
    "evaluation",
    "retrieval",
    "inference",
    "model",
    "data",
    "recipe",
    "recipe_parts",
    "utils",
    "errors",
]
"""From the top. A module may import from its own part and from those below it."""
FACE = {"__init__", "__main__", "version", "deprecated"}
"""The package's face is outside of the layers; only the version may be imported from it."""
MODULES = sorted(SRC.rglob("*.py"))


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(SRC.parent).with_suffix("").parts).removesuffix(".__init__")


KNOWN = {name_of(module) for module in MODULES}


def imported(file: Path) -> Iterator[str]:
    """Yield the modules of this package that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names if one.name in KNOWN)
        if isinstance(node, ast.ImportFrom) and node.module in KNOWN:
            for one in node.names:
                whole = f"{node.module}.{one.name}"
                yield whole if whole in KNOWN else node.module


def layer(module: str) -> int | None:
    _, _, path = module.partition(".")
    part = path.partition(".")[0] or "__init__"
    return None if part in FACE else LAYERS.index(part)


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_imports_point_down(file: Path) -> None:
    own = layer(name_of(file))
    for module in imported(file):
        below = layer(module)
        if own is None:
            continue
        if below is None:
            assert module == "llm2comp.version", f"{name_of(file)} imports the package's face"
        else:
            assert below >= own, f"{name_of(file)} imports {module}, which is above it"


def test_there_is_no_circle() -> None:
    names = {name_of(file): file for file in MODULES}
    graph = {name: set(imported(file)) for name, file in names.items() if layer(name) is not None}
    assert any(layer(name) == 0 for name in graph)
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            for below in sorted(graph.get(module, ())):
                visit(below, (*path, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


@pytest.mark.parametrize("file", sorted(SRC.rglob("*/__init__.py")), ids=name_of)
def test_a_package_s_init_imports_nothing(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    assert len(tree.body) == 1


def test_packages_and_files_stay_small() -> None:
    root = SRC.parents[1]
    for folder in {file.parent for file in MODULES}:
        assert len(list(folder.glob("*.py"))) <= 14, folder
    for file in [*MODULES, *(root / "tests").rglob("*.py"), *(root / "benchmarks").rglob("*.py")]:
        assert len(file.read_text(encoding="utf-8").splitlines()) <= 400, file


def test_the_face_is_light() -> None:
    code = (
        "import sys, time; start = time.process_time(); import llm2comp;"
        "took = time.process_time() - start;"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'mteb'} & set(sys.modules);"
        "print(took, sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    took, _, heavy = done.stdout.strip().partition(" ")
    assert heavy == "[]"
    assert float(took) < 0.1
