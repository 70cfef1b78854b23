"""What an encoder folder calls files and folders of the machine on which it was made."""

from pathlib import Path

from llm2comp.data import files
from llm2comp.recipe import STAGE_FOLDERS

FOLDERS_OF_A_RUN = ("model", *STAGE_FOLDERS.values())
"""The folders of a run that hold an encoder."""


def encoder_name(name: str) -> str:
    """Return the last part of a local encoder folder, and of one in a run the run's name too.

    All runs have a folder `model`, so its name alone says nothing.
    """
    last = base_name(name)
    if last == name or last not in FOLDERS_OF_A_RUN:
        return last
    return f"{Path(name).expanduser().absolute().parent.name}/{last}"


def base_name(name: str) -> str:
    """Return the last part of a local path; any other name, such as a hub id, is kept."""
    return Path(name).expanduser().name if is_local(name) else name


def is_local(name: str) -> bool:
    """Tell whether a name is that of a file or folder, which may be on another machine."""
    path = Path(name).expanduser()
    return path.is_absolute() or path.exists() or files.kind_of(path) in (".gguf", *files.READERS)
