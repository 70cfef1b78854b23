"""Command lines: every command with odd options and values, or without what it needs."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
from cases import case, cases, run
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import mostly, texts

from llm2comp.cli.app import app
from llm2comp.errors import UserError
from llm2comp.model import released

GROUP: Any = typer.main.get_command(app)
OF_DATA = GROUP.commands["data"].commands
APART = {"doctor", "demo", "serve"}
"""`doctor` takes no arguments, `demo` trains for minutes, and `serve` runs until it is stopped."""
COMMANDS = sorted(GROUP.commands.keys() - APART - {"data"})
COMMANDS += [f"data {name}" for name in sorted(OF_DATA)]
MISTAKEN = ["data", "", "unknown", "encod"]
OPTIONS = sorted(
    {
        name
        for command in (GROUP, *GROUP.commands.values(), *OF_DATA.values())
        for option in command.params
        for name in (*option.opts, *option.secondary_opts)
        if name.startswith("-")
    }
)
OPTIONS += ["--help", "-h", "-x", "--unknown", "--ou", "--"]
ODD_VALUES = [
    "",
    " ",
    "-",
    "--",
    ".",
    "..",
    "/",
    "~",
    "/dev/null",
    "/dev/full",
    "/dev/stdin",
    "texts.txt",
    "texts.txt/x",
    "empty.txt",
    "folder",
    "folder/",
    "new",
    "new/out.npy",
    "out.npy",
    "out.parquet",
    "out.html",
    "rows.jsonl",
    "recipe.yaml",
    "results",
    "link",
    "loop",
    "0",
    "1",
    "-1",
    "30",
    "1e400",
    "nan",
    "99999999999999999999999",
    "float32",
    "query",
    "onnx",
    "markdown",
    "mean",
    "boolq-passages",
    "minilm",
    "owner/name",
    "owner/name:x",
    "a=b",
    "x" * 300,
    "x/" * 3000,
    "w" * 100_000,
    "line\nbreak",
    "\udcff",
    "\U0001f600",
    "[red]x[/red]",
    "{}",
    "%s",
    "https://example.org/x",
    "..\\x",
]
words = texts.filter(lambda text: "\x00" not in text)  # no command line can hold that character
argument_values = st.one_of(st.sampled_from(ODD_VALUES), st.sampled_from(ODD_VALUES), words)
assigned = st.builds("{}={}".format, st.sampled_from(OPTIONS), argument_values)
arguments = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(OPTIONS), argument_values).map(list),
        st.sampled_from(OPTIONS).map(lambda option: [option]),
        argument_values.map(lambda value: [value]),
        assigned.map(lambda option: [option]),
    ),
    max_size=5,
).map(lambda groups: [argument for group in groups for argument in group])


@pytest.fixture(autouse=True)
def _no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no model be found, because these tests are about what comes before.

    `load` itself stays as it is: a module that is imported now would keep another one for ever.
    """

    def refuse(name: str) -> None:
        raise UserError(f"{name}: no models here")

    monkeypatch.setattr(released, "local_encoder", refuse)


@cases(300)
@example(command="report", odd=["--out", "--texts", "--out"])
@given(command=st.sampled_from([*COMMANDS, *MISTAKEN]), odd=arguments)
def test_any_command_line_is_run_or_refused(command: str, odd: list[str]) -> None:
    with case("arguments: any"):
        _write_files()
        # Without --out most commands are refused at once.
        run([*command.split(), *odd], writes=_outputs(odd), begins="out")


GOOD = {
    "analyze": ["minilm", "--data", "texts.txt", "--out", "out"],
    "answer": ["minilm", "--questions", "9", "--out", "out"],
    "capacity": ["minilm", "--data", "texts.txt", "--length", "16", "--out", "out"],
    "data fetch": ["boolq-passages"],
    "data list": [],
    "data show": ["recipe.yaml"],
    "delete": ["folder", "texts.txt:3"],
    "encode": ["minilm", "texts.txt", "--out", "out.npy"],
    "evaluate": ["minilm", "--tasks", "stsb", "--out", "out"],
    "export": ["minilm", "--to", "onnx", "--out", "out"],
    "index": ["minilm", "texts.txt", "--out", "out"],
    "mine": ["minilm", "pairs.jsonl", "texts.txt", "--ranks", "1", "9", "--out", "out.jsonl"],
    "plan": ["recipe.yaml", "--gpu", "L4"],
    "push": ["folder", "owner/name"],
    "read": ["minilm", "texts.txt"],
    "report": ["minilm", "--data", "texts.txt", "--out", "out.html"],
    "results": ["results"],
    "search": ["minilm", "texts.txt", "river"],
    "study": ["study.yaml", "--out", "out"],
    "train": ["recipe.yaml", "--out", "out"],
}


def test_every_command_has_a_good_line() -> None:
    assert list(GOOD) == sorted(COMMANDS)


@cases(130)
@given(
    command=st.sampled_from(sorted(GOOD)),
    change=st.lists(
        st.tuples(
            st.integers(0, 5),
            st.sampled_from(["replace", "replace", "remove", "twice"]),
            argument_values,
        ),
        min_size=1,
        max_size=2,
    ),
    odd=mostly([], arguments),
)
def test_a_changed_command_line_is_run_or_refused(
    command: str, change: list[tuple[int, str, str]], odd: list[str]
) -> None:
    with case("arguments: changed"):
        _write_files()
        given_ones = list(GOOD[command])
        for place, kind, value in change:
            if given_ones:
                here = place % len(given_ones)
                new = {"replace": [value], "remove": [], "twice": [given_ones[here]] * 2}[kind]
                given_ones[here : here + 1] = new
        run(
            [*command.split(), *given_ones, *odd],
            writes=_outputs([*given_ones, *odd]),
            begins="out",
        )


def _outputs(given_ones: list[str]) -> list[str]:
    """Return the values of `--out`."""
    named = [value for name, value in pairwise(given_ones) if name == "--out"]
    assigned_ones = [
        value.removeprefix("--out=") for value in given_ones if value.startswith("--out=")
    ]
    return [*named, *assigned_ones]


def _write_files() -> None:
    """Write what the names among the values stand for."""
    Path("texts.txt").write_text("a river\na house\n" * 20, encoding="utf-8")
    Path("empty.txt").touch()
    Path("out.parquet").write_bytes(b"kept")
    Path("rows.jsonl").write_text('{"text": "a river"}\n', encoding="utf-8")
    pairs = (
        '{"anchor": "water", "positive": "a river"}\n{"anchor": "home", "positive": "a house"}\n'
    )
    Path("pairs.jsonl").write_text(pairs, encoding="utf-8")
    Path("recipe.yaml").write_text("name: x\n", encoding="utf-8")
    Path("study.yaml").write_text("name: x\n", encoding="utf-8")
    Path("folder").mkdir()
    Path("results").mkdir()
    Path("folder", "kept").touch()
    Path("link").symlink_to("texts.txt")
    Path("loop").symlink_to("loop")
