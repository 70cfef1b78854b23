"""Find a recipe or a study by path, or by the name of one that comes with the package."""

from pathlib import Path

from llm2comp.errors import UserError

_PACKAGE = Path(__file__).parent


def recipe_path(name: str) -> Path:
    """Return the file of a recipe given as a path or as a shipped name (``demo``).

    Raises:
        UserError: if it is neither.
    """
    return _find(name, "recipe", "*.yaml")


def study_path(name: str) -> Path:
    """Return the file of a study given as a path or as a shipped name (``pretext``).

    Raises:
        UserError: if it is neither.
    """
    return _find(name, "study", "study/*.yaml")


def _find(name: str, what: str, pattern: str) -> Path:
    given = Path(name).expanduser()
    if given.is_file():
        return given
    # A wheel carries recipes/ inside the package; a checkout has it at its root.
    for folder in (_PACKAGE / "shipped_recipes", _PACKAGE.parents[1] / "recipes"):
        shipped = {file.stem: file for file in sorted(folder.glob(pattern))}
        if name in shipped:
            return shipped[name]
        if shipped:
            raise UserError(f"{what} {name}: no such file; shipped are {', '.join(shipped)}")
    raise UserError(f"{what} {name}: no such file")
