"""Import paths of version 0.1. They still work, with a `DeprecationWarning` that names the new one.

To add a path, add a line to `MOVED`.
"""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {
    "llm2comp.allocator.keep_freed": "llm2comp.utils.hardware.retain_freed_memory",
    "llm2comp.baselines.BASELINES": "llm2comp.evaluation.baselines.BASELINES",
    "llm2comp.baselines.build": "llm2comp.evaluation.baselines.build",
    "llm2comp.merging.MergeMemory": "llm2comp.model.modules.MergeMemory",
    "llm2comp.merging.cluster_weights": "llm2comp.model.modules.cluster_weights",
    "llm2comp.merging.merge_memory": "llm2comp.model.modules.merge_memory",
    "llm2comp.release.fetch": "llm2comp.fetch",
    "llm2comp.release.load_model": "llm2comp.inference.load.load_in",
    "llm2comp.release.names": "llm2comp.model.released.names",
    "llm2comp.stages.chain.train": "llm2comp.training.pipeline.train",
}
"""The new name of each function or class, by its old name."""

OLD_MODULES = {name.rpartition(".")[0] for name in MOVED} | {"llm2comp.stages"}


class _OldModule(ModuleType):
    """A module that imports each of its names from the new place when it is used."""

    def __getattr__(self, name: str) -> Any:
        old = f"{self.__name__}.{name}"
        if old not in MOVED:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        new = MOVED[old]
        warnings.warn(f"{old} has moved to {new}", DeprecationWarning, stacklevel=2)
        module, _, attribute = new.rpartition(".")
        return getattr(import_module(module), attribute)


class _Finder:
    """Finds and loads the modules of version 0.1. It comes last, so it hides no module of today.

    It has the methods of a finder and a loader but does not inherit from `importlib.abc`, because
    importing that takes longer than the rest of `import llm2comp`.
    """

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        if fullname not in OLD_MODULES:
            return None
        is_package = any(name.startswith(f"{fullname}.") for name in OLD_MODULES)
        return ModuleSpec(fullname, self, is_package=is_package)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _OldModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def install() -> None:
    """Make the import system find the modules of version 0.1."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
