"""The functions that `import llm2comp` offers: their examples, their options, their imports."""

import ast
import doctest
import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import llm2comp
from llm2comp import api
from llm2comp.cli.app import app
from llm2comp.data import catalog
from llm2comp.errors import UserError
from llm2comp.evaluation import checked_export
from llm2comp.inference import compiled
from llm2comp.model import released
from llm2comp.recipe import load_recipe

V0_1 = Path(__file__).parent / "fixtures" / "v0_1"
RELEASE = "smollm2-135m-llm2comp"
FUNCTIONS = [name for name in llm2comp.__all__ if name != "__version__"]
API_OF_COMMAND = {"encode": "encode_file"}
"""The function of a command, if it does not have the name of the command."""
WITHOUT_FUNCTION = {"results", "doctor", "demo", "data", "delete", "serve"}
"""Commands that only print or download, run until they are stopped, or are a method of an index."""
RENAMED_OPTIONS = {
    "merge": "merge_threshold",
    "baseline": "baselines",
    "query": "queries",
    "length": "lengths",
}
"""Options that the command line repeats or shortens."""
NOT_IN_API = {
    ("train", "on_bad_row"),
    ("encode", "engine"),
    ("encode", "keep"),
    ("encode", "on_bad_row"),
    ("search", "names"),
    ("search", "where"),
    ("search", "by"),
    ("read", "as_json"),
    ("capacity", "as_json"),
    ("answer", "as_json"),
}
"""Short for a change to the recipe, what `encode_files` and `Index.search` take, or how a command
prints."""


def plain(default: Any) -> Any:
    """Return a default in one form: the command line has None for nothing, also for no values."""
    return None if default in ("", (), []) else default


def commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of releases with one tiny release, made of a run of 16 dimensions."""
    folder = tmp_path_factory.mktemp("releases") / "released"
    run = V0_1 / "run-finished"
    for stage in ("1-pretext", "2-unsupervised", "3-supervised"):
        shutil.copytree(run / stage / "adapter", folder / RELEASE / stage)
    lineage = json.loads((run / "model" / "llm2comp.json").read_text())
    lineage["backbone"]["name"] = str(V0_1 / "backbone")
    (folder / RELEASE / "llm2comp.json").write_text(json.dumps(lineage))
    return folder


@pytest.fixture
def workplace(
    release: Path,
    tiny_recipe: Path,
    sets: dict[str, list[dict[str, str]]],
    sentences: list[str],
    empty_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """An empty folder with the files that the examples name, and tiny encoders and sets."""
    folder = tmp_path / "workplace"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(released, "RELEASED", release)
    monkeypatch.setattr(catalog, "fetch", lambda name: V0_1 / "run-finished" / "model")
    passages = [" ".join((sentences * 3)[start : start + 12]) for start in range(8)] * 9
    sets["boolq-passages"] = [{"text": passage} for passage in passages]
    # The rank correlation of a tiny encoder depends on rounding.
    monkeypatch.setattr(checked_export, "_score", lambda *_: 50.0)
    (folder / "texts.txt").write_text("\n".join(sentences) + "\n")
    (folder / "backbone").symlink_to(V0_1 / "backbone")  # as the lineage of the release names it
    recipe = yaml.safe_load(tiny_recipe.read_text())
    for stage in recipe["stages"]:
        stage["steps"] = 2
    pairs = [{"anchor": text, "positive": text[::-1]} for text in sentences]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)) + "\n")
    (folder / "my-recipe.yaml").write_text(yaml.safe_dump(recipe))
    study = {
        "name": "my-study",
        "recipe": {
            "backbone": recipe["backbone"],
            "stages": recipe["stages"][:1],
            "evaluation": {"tasks": ["STS17"]},
        },
        "settings": {"k = 2": ["memory.tokens=2"], "k = 4": ["memory.tokens=4"]},
        "seeds": [0],
    }
    (folder / "my-study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    return folder


class ResultsOnly(doctest.OutputChecker):
    """Ignores what a call prints as progress: the examples show results only."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return not want or super().check_output(want, got, optionflags)


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_example_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "export":
        try:
            compiled.require("onnx")
        except UserError as error:
            pytest.skip(str(error))
    if name in ("index", "open_index"):
        pytest.importorskip("lancedb")
    (example,) = doctest.DocTestFinder().find(
        getattr(llm2comp, name), name, globs={"llm2comp": llm2comp}
    )
    assert example.examples, "there is no example"
    runner = doctest.DocTestRunner(ResultsOnly(), optionflags=doctest.ELLIPSIS)
    report: list[str] = []
    failed, _ = runner.run(example, out=report.append)
    assert not failed, "".join(report)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_argument_and_the_errors_are_documented(name: str) -> None:
    function = getattr(llm2comp, name)
    text = inspect.getdoc(function)  # without the indentation, which Python 3.13 strips itself
    for argument in inspect.signature(function).parameters:
        assert f"\n    {argument}: " in text, argument
    assert "\nRaises:\n    UserError: " in text
    assert f"llm2comp.{name}(" in text


@pytest.mark.parametrize("name", sorted(commands().keys() - WITHOUT_FUNCTION))
def test_a_command_has_a_function_with_the_same_options(name: str) -> None:
    function = API_OF_COMMAND.get(name, name)
    assert function in FUNCTIONS
    arguments = inspect.signature(getattr(api, function)).parameters
    for option in commands()[name].params:
        if option.name != "help" and (name, option.name) not in NOT_IN_API:
            # `search` looks for one query, `report` for several.
            known = option.name if option.name in arguments else RENAMED_OPTIONS[option.name]
            assert known in arguments, option.name


@pytest.mark.parametrize("name", sorted(commands().keys() - WITHOUT_FUNCTION))
def test_a_command_has_the_defaults_of_its_function(name: str) -> None:
    arguments = inspect.signature(getattr(api, API_OF_COMMAND.get(name, name))).parameters
    for option in commands()[name].params:
        known = RENAMED_OPTIONS.get(option.name, option.name)
        if known in arguments and arguments[known].default is not inspect.Parameter.empty:
            own = arguments[known].default
            assert plain(option.default) == plain(own), option.name
            assert type(plain(option.default)) is type(plain(own)), option.name  # 0 is not False


def test_all_commands_are_considered() -> None:
    assert commands().keys() > WITHOUT_FUNCTION
    only_functions = {"fetch", "load", "encode", "encode_files", "open_index", "memory", "generate"}
    assert set(FUNCTIONS) - only_functions == {
        API_OF_COMMAND.get(name, name) for name in commands().keys() - WITHOUT_FUNCTION
    }


def test_the_functions_are_imported_when_they_are_used() -> None:
    code = (
        "import sys, llm2comp\n"
        "assert set(llm2comp.__all__) <= set(dir(llm2comp))\n"
        "assert 'llm2comp.api' not in sys.modules\n"
        "for name in llm2comp.__all__: getattr(llm2comp, name)\n"
        "assert not {'torch', 'numpy', 'pydantic', 'mteb'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    for name in FUNCTIONS:
        assert getattr(llm2comp, name) is getattr(api, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        llm2comp.nothing  # noqa: B018
    written = {
        name
        for name, value in vars(api).items()
        if inspect.isfunction(value) and value.__module__.startswith(api.__name__)
    }
    assert {name for name in written if not name.startswith("_")} == set(FUNCTIONS)


def test_type_checkers_are_told_of_every_function() -> None:
    tree = ast.parse(Path(inspect.getfile(llm2comp)).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    (told,) = (node for node in block.body if isinstance(node, ast.ImportFrom))
    assert told.module == "llm2comp.api"
    assert [alias.name for alias in told.names] == FUNCTIONS


@pytest.mark.slow
def test_mypy_knows_the_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mypy = pytest.importorskip("mypy.api")
    names = "\n".join(f"reveal_type(llm2comp.{name})" for name in FUNCTIONS)
    (tmp_path / "user.py").write_text(f"import llm2comp\n{names}\n")
    # The folder, settings and paths of `make lint`, whose cache then serves here, too.
    monkeypatch.chdir(Path(__file__).parents[1])
    monkeypatch.setenv("MYPYPATH", "src")
    output, errors, _ = mypy.run(["--strict", str(tmp_path / "user.py")])
    revealed = [line for line in output.splitlines() if "Revealed type" in line]
    assert len(revealed) == len(FUNCTIONS), output + errors
    assert not [line for line in revealed if 'is "Any"' in line]


def test_options_are_refused_for_what_is_loaded_already(workplace: Path) -> None:
    model = llm2comp.load(RELEASE)
    with pytest.raises(UserError, match="for a model given by name"):
        llm2comp.encode(model, ["a"], dtype="float32")
    recipe = load_recipe(workplace / "my-recipe.yaml")
    with pytest.raises(UserError, match="overrides are for a recipe given by name"):
        llm2comp.train(recipe, workplace / "run", ["seed=1"])


def test_a_mistake_is_found_before_a_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.txt"):
        llm2comp.search("no such model", tmp_path / "absent.txt", "a query")
    with pytest.raises(UserError, match=r"absent\.txt"):
        llm2comp.encode_file("no such model", tmp_path / "absent.txt", tmp_path / "e.npy")
    with pytest.raises(UserError, match=r"e\.doc"):
        llm2comp.encode_file("no such model", tmp_path / "absent.txt", tmp_path / "e.doc")
