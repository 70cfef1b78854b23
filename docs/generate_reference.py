"""Write the reference pages that come from the code: recipe keys and commands.

`make docs` runs this before it builds the site. The pages are not kept in git, because a copy
would go out of date.

    python docs/generate_reference.py
"""

import re
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from typer.cli import get_docs_for_click

from llm2comp.cli.app import app
from llm2comp.recipe import Recipe
from llm2comp.training.study.plan import Study

FOLDER = Path(__file__).parent / "reference"

RECIPE_HEAD = """# Recipe keys

A recipe is a YAML file. This page lists every key with its type and its default value. An unknown
key is an error, and the message names the nearest known key. [Train on your own
data](../guides/own-data.md) explains how to write a recipe.

Keys of a part are written below that part:

```yaml
name: mine
memory:
  tokens: 8
stages:
  - stage: pretext
    data: [{source: my-passages.txt}]
    steps: 250
    batch_size: 8
    learning_rate: 1.5e-3
```

On the command line, dots join the keys, and a stage is named by its `stage`:
`llm2comp train mine.yaml memory.tokens=4 pretext.steps=400 --out runs/mine`.
"""

STUDY_HEAD = """# Study keys

A study compares settings of one recipe. [Compare settings](../guides/studies.md) explains how to
write one. The keys of a recipe are on [their own page](recipe.md).
"""

COMMANDS_HEAD = """# Commands

This page shows what `llm2comp COMMAND --help` prints. A mistake in the input ends with one line on
standard error and exit status 2. Ctrl-C ends with exit status 130. `LLM2COMP_DEBUG=1` shows the
traceback instead of the line.
"""


def main() -> None:
    """Write the three pages."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "recipe.md").write_text(RECIPE_HEAD + _keys(Recipe), encoding="utf-8")
    (FOLDER / "study.md").write_text(STUDY_HEAD + _keys(Study), encoding="utf-8")
    (FOLDER / "commands.md").write_text(COMMANDS_HEAD + _commands(), encoding="utf-8")


def _commands() -> str:
    """Return typer's own Markdown, one section per command, with the examples as code."""
    command = typer.main.get_command(app)
    pages = get_docs_for_click(obj=command, ctx=typer.Context(command), name="llm2comp")
    sections = "\n##" + pages.split("\n##", 1)[1]  # what stands before is of no command
    return re.sub(r"\n+Examples?:\n((?:  .*\n)+)", _as_code, sections)


def _as_code(examples: re.Match[str]) -> str:
    lines = "".join(f"{line.strip()}\n" for line in examples[1].splitlines())
    return f"\n\n```bash\n{lines}```\n"


def _keys(root: type[BaseModel]) -> str:
    """Return a section with a table for each model, the root's first."""
    return "".join(_section(model) for model in _models(root, []))


def _models(model: type[BaseModel], seen: list[type[BaseModel]]) -> Iterator[type[BaseModel]]:
    if model in seen:
        return
    seen.append(model)
    yield model
    for field in model.model_fields.values():
        for part in _parts(field.annotation):
            yield from _models(part, seen)


def _parts(annotation: typing.Any) -> Iterator[type[BaseModel]]:
    """Yield the models within a type, in the order in which they are written."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _parts(argument)


def _section(model: type[BaseModel]) -> str:
    about = _plain((model.__doc__ or "").strip())
    rows = "".join(_row(key, field) for key, field in model.model_fields.items())
    return (
        f"\n## {model.__name__}\n\n{about}\n\n"
        f"| key | type | default | meaning |\n|---|---|---|---|\n{rows}"
    )


def _row(key: str, field: FieldInfo) -> str:
    cells = [f"`{key}`", _type(field), _default(field), _one_line(field.description or "")]
    return f"| {' | '.join(cells)} |\n"


def _type(field: FieldInfo) -> str:
    """Return a type as a reader of YAML knows it, with the limits of a number."""
    names = " or ".join(dict.fromkeys(_type_names(field.annotation)))
    return ", ".join([names, *_limits(field.metadata)])


def _limits(metadata: Iterable[typing.Any]) -> Iterator[str]:
    signs = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    for limit in metadata:
        if isinstance(limit, FieldInfo):
            yield from _limits(limit.metadata)
        for name, sign in signs.items():
            if hasattr(limit, name):
                yield f"{sign} {getattr(limit, name)}"


def _type_names(annotation: typing.Any) -> Iterator[str]:
    known = {str: "text", int: "integer", float: "number", bool: "true or false"}
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        yield ", ".join([*_type_names(arguments[0]), *_limits(arguments[1:])])
    elif origin is typing.Literal:
        yield from (f"`{value}`" for value in arguments)
    elif origin in (typing.Union, types.UnionType):
        for argument in arguments:
            yield from _type_names(argument)
    elif origin is list:
        yield f"list of {' or '.join(_type_names(arguments[0]))}"
    elif origin is dict:
        yield "mapping"
    elif annotation is type(None):
        yield "`null`"
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    else:
        yield known.get(annotation, "any")


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined and field.default_factory is None:
        return "required"
    default = field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        return "its own defaults"
    words = {None: "`null`", True: "`true`", False: "`false`", "": '`""`'}
    if isinstance(default, bool | str | None) and default in words:
        return words[default]
    text = repr(default) if isinstance(default, str) and "\n" in default else str(default)
    return f"`{text}`"


def _one_line(text: str) -> str:
    """Return a docstring as the text of a table's cell."""
    return " ".join(_plain(text).split()).replace("|", "\\|")


def _plain(text: str) -> str:
    """Return reStructuredText's double backticks as Markdown's single ones."""
    return "\n".join(line.strip() for line in text.replace("``", "`").splitlines())


if __name__ == "__main__":
    main()
