"""What an encoder folder must pass before anything of it leaves this machine."""

import re
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer

from llm2comp.errors import UserError
from llm2comp.inference import compiled
from llm2comp.inference.load import SETTINGS, load, one_line_errors, trusted
from llm2comp.model import released
from llm2comp.model.lineage import Lineage
from llm2comp.utils.checksums import CALIBRATION, CARD, require_unchanged

VOCABULARIES = {"tokenizer.json", "vocab.json", "added_tokens.json"}
"""Files whose words may look like paths."""
TEXT_FILES = (".json", ".md", ".txt", ".yaml", ".yml")
LOCAL_PATH = re.compile(
    r"(?<![\w./:-])(?:/(?:home|root|Users|Volumes|private|mnt|media|tmp|var|opt|srv|scratch|work|"
    r"workspace|content|kaggle|gpfs|lustre)/[\w.+@~-]|[A-Za-z]:(?:\\\\?|/)[\w.~-])[^\s\"'`<>,;)]*"
)
"""An absolute path, as of a folder of a user, a mounted disk or a drive of Windows."""


def encoder_folder(name: str) -> tuple[Path, Lineage]:
    """Return the folder of an encoder on this machine, and its lineage.

    Args:
        name: encoder folder or released name.

    Raises:
        UserError: if there is none, or it is not of this package, or not complete.
    """
    folder = released.local_encoder(name)
    if folder is None:
        raise UserError(f"{name}: no such folder; name an encoder folder on this machine")
    lineage = Lineage.read(folder)
    for needed in SETTINGS:
        if not (folder / needed).is_file():
            raise UserError(f"{folder} is not a whole encoder folder: it has no {needed}")
    return folder, lineage


def files_of(folder: Path) -> list[Path]:
    """Return the files of a folder that are published, without hidden ones and the calibration."""
    return [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file()
        and file.name != CALIBRATION
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]


def require_publishable(name: str, folder: Path, lineage: Lineage) -> None:
    """Check that a folder is undamaged, says nothing about this machine, and encodes as it did.

    Raises:
        UserError: if it does not pass; the message names the file.
    """
    require_unchanged(folder, edited=CARD)
    for file in files_of(folder):
        if file.suffix in TEXT_FILES and file.name not in VOCABULARIES:
            _require_no_path(file)
    _require_same_embeddings(name, folder, lineage)


def _require_no_path(file: Path) -> None:
    text = file.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        if found := LOCAL_PATH.search(line):
            raise UserError(
                f"{file}:{number}: {found[0]} is a path on a machine, which others would see; "
                "take it out"
            )


def _require_same_embeddings(name: str, folder: Path, lineage: Lineage) -> None:
    """Check that stock sentence-transformers loads a folder and computes what was saved with it.

    A compiled folder is loaded by this package, because the versions of sentence-transformers that
    load it do not run beside the present transformers.
    """
    if compiled.backend_of(folder):
        load(folder)
        return
    with one_line_errors(name):
        model = SentenceTransformer(
            str(folder),
            device="cpu",
            trust_remote_code=trusted(),
            model_kwargs={"dtype": torch.float32},
        )
        reference = lineage.reference
        difference = 0.0 if reference is None else reference.difference(model)
        finite = bool(model.encode("a text", convert_to_tensor=True).isfinite().all())
    if not (difference <= lineage.allowed_difference and finite):
        raise UserError(
            f"{folder}: sentence-transformers computes other embeddings from it than those saved "
            f"with it (a cosine distance of {difference:.1e}); train or export it again"
        )
