"""Import paths of version 0.1 give the objects of today, with a warning that names their place."""

import importlib
import inspect
import sys

import pytest
import torch

import llm2comp
from llm2comp import deprecated


def resolve(name: str) -> object:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("old", deprecated.MOVED)
def test_an_old_name_is_the_new_object_and_warns(old: str) -> None:
    new = deprecated.MOVED[old]
    with pytest.warns(DeprecationWarning, match=f"{old} has moved to {new}") as caught:
        found = resolve(old)
    assert found is resolve(new)
    assert len(caught) == 1
    assert caught[0].filename == __file__  # the line of the user, not of this package


def test_a_from_import_warns_at_the_line_of_the_user() -> None:
    with pytest.warns(DeprecationWarning, match="llm2comp.model.modules.merge_memory") as caught:
        from llm2comp.merging import merge_memory
    assert callable(merge_memory)
    assert caught[0].filename == __file__


def test_an_old_package_and_its_module_are_imported_without_a_warning(
    recwarn: pytest.WarningsRecorder,
) -> None:
    import llm2comp.stages.chain
    from llm2comp.stages import chain

    assert chain is llm2comp.stages.chain
    assert not [warning for warning in recwarn if warning.category is DeprecationWarning]
    with pytest.warns(DeprecationWarning, match="llm2comp.training.pipeline.train"):
        assert callable(chain.train)


def test_load_model_takes_the_arguments_of_0_1() -> None:
    with pytest.warns(DeprecationWarning, match="load_model has moved"):
        parameters = inspect.signature(resolve("llm2comp.release.load_model")).parameters
    assert list(parameters)[:2] == ["name", "dtype"]
    assert parameters["dtype"].default is torch.float32


def test_what_did_not_move_does_not_warn(recwarn: pytest.WarningsRecorder) -> None:
    from llm2comp import fetch
    from llm2comp.recipe import load_recipe

    assert callable(fetch)
    assert callable(load_recipe)
    assert not [warning for warning in recwarn if "has moved" in str(warning.message)]


def test_an_unknown_name_is_the_usual_error() -> None:
    with pytest.raises(AttributeError, match="'llm2comp.merging' has no attribute 'x'"):
        resolve("llm2comp.merging.x")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("llm2comp.stages.nothing")
    with pytest.raises(ImportError):
        from llm2comp.merging import nothing  # noqa: F401


def test_no_old_module_hides_one_of_today() -> None:
    before = sys.meta_path[:]
    deprecated.install()
    assert sys.meta_path == before  # once only
    finders = [type(finder) is deprecated._Finder for finder in sys.meta_path]
    assert finders == sorted(finders)  # last
    names = {name.partition(".")[2].partition(".")[0] for name in deprecated.OLD_MODULES}
    assert not names & set(llm2comp.__all__)
