"""Find a recipe by path, or by the name of one that comes with the package."""

from pathlib import Path

from llm2comp.errors import UserError

_PACKAGE = Path(__file__).parent


def recipe_path(name: str) -> Path:
    """Return the file of a recipe given as a path or as a shipped name (``demo``).

    Raises:
        UserError: if it is neither.
    """
    given = Path(name).expanduser()
    if given.is_file():
        return given
    # A wheel carries recipes/ inside the package; a checkout has it at its root.
    for folder in (_PACKAGE / "shipped_recipes", _PACKAGE.parents[1] / "recipes"):
        shipped = {file.stem: file for file in sorted(folder.glob("*.yaml"))}
        if name in shipped:
            return shipped[name]
        if shipped:
            known = ", ".join(shipped)
            raise UserError(f"recipe {name}: no such file; shipped recipes are {known}")
    raise UserError(f"recipe {name}: no such file")
