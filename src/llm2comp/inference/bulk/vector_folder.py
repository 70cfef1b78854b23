"""A folder of files of vectors, which says what they are and which of them are whole."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from llm2comp.errors import UserError
from llm2comp.inference.bulk.encoding import Encoding
from llm2comp.inference.bulk.locations import (
    files_below,
    local_path,
    locate,
    new_file,
    remove_partials,
)
from llm2comp.inference.bulk.shards import Shard, would_find
from llm2comp.utils.choices import OnBadRow
from llm2comp.utils.files import require_folder

ENCODING, FAILED, LOCK = "_encoding.json", "_failed.jsonl", "_writer.lock"
SKIPPED = "_skipped"
"""What is in the folder besides vectors. Readers of Parquet leave out names that begin with `_`."""
ORIGIN = b"llm2comp.origin"
"""Key of a file's metadata under which it says in JSON what it was made from."""


class VectorFolder:
    """A folder of files of vectors.

    Args:
        name: path or URL, as the user spells it.

    Raises:
        UserError: if its file system cannot be used, or it cannot be written.
    """

    def __init__(self, name: str) -> None:
        self.name = name.rstrip("/") or name
        fs, path = locate(self.name)
        self.url: str = fs.unstrip_protocol(path)
        local = local_path(self.name)
        if local is not None:
            require_folder(local)
        self.local = local

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Make the folder, and keep other processes of this machine from writing to it.

        What processes that were killed have left is removed before the block and after it.

        Raises:
            UserError: if another process writes to it.
        """
        if self.local is None:  # object stores have no locks
            yield
            return
        self.local.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.local / LOCK, timeout=0):
                remove_partials(self.url)
                yield
                remove_partials(self.url)
        except Timeout as error:
            raise UserError(f"{self.name}: another process writes to it; wait for it") from error

    def require_outside(self, shards: Sequence[Shard], pattern: str, model: str) -> None:
        """Check that no file of texts is in the folder, and that no file of it is read later.

        Args:
            shards: the files of texts.
            pattern: that names them.
            model: name or folder of the model.

        Raises:
            UserError: if a file of texts is in the folder, or the same call would later find
                vectors as files of texts, or as files of the model, which would be another one.
        """
        if self.local is not None and self.local.resolve().is_relative_to(Path(model).resolve()):
            raise UserError(f"--out {self.name}: is in the folder of the model; name another")
        for shard in shards:
            if shard.url.startswith(f"{self.url}/"):
                raise UserError(f"--out {self.name}: the input {shard.name} is in it; name another")
        if any(would_find(pattern, f"{self.url}/{shard.output}") for shard in shards):
            raise UserError(
                f"--out {self.name}: is in the input {pattern}, so the next call would encode the "
                "vectors; name another"
            )

    def encoding(self) -> Encoding | None:
        """Return what the vectors of the folder are; None if nothing was encoded into it.

        Raises:
            UserError: if the file that says so is damaged.
        """
        fs, path = locate(f"{self.url}/{ENCODING}")
        if not fs.exists(path):
            return None
        try:
            return Encoding.from_json(fs.cat_file(path))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.name}/{ENCODING}: is damaged; name another folder") from error

    def claim(self, encoding: Encoding) -> None:
        """Write down what the vectors of the folder are.

        Raises:
            UserError: if another process has claimed it for others.
        """
        known = self.encoding()
        if known is None:
            with new_file(f"{self.url}/{ENCODING}") as stream:
                stream.write(f"{encoding.to_json()}\n".encode())
        elif known.id != encoding.id:
            raise UserError(f"{self.name}: another process encodes into it; name another folder")

    def missing(
        self, shards: Sequence[Shard], encoding: Encoding, on_bad_row: OnBadRow
    ) -> list[Shard]:
        """Return the files of texts whose vectors are not there, or are of an earlier version.

        Args:
            shards: the files of texts.
            encoding: what their vectors are.
            on_bad_row: with `fail`, vectors without those of bad rows are not all of them.

        Raises:
            UserError: if a file that would be replaced holds something else.
        """
        there = files_below(self.url)
        return [
            shard
            for shard in shards
            if shard.output not in there
            or (on_bad_row == "fail" and _skipped_file(shard) in there)
            or not self._is_whole(shard, encoding)
        ]

    def _is_whole(self, shard: Shard, encoding: Encoding) -> bool:
        fs, path = locate(f"{self.url}/{shard.output}")
        try:
            with fs.open(path, "rb") as stream:
                schema = pq.read_schema(stream)
        except pa.ArrowException:  # a damaged disk
            return False
        shown = f"{self.name}/{shard.output}"
        if ORIGIN not in (schema.metadata or {}):
            raise UserError(f"{shown}: is a table of something else; name another folder")
        origin = json.loads(schema.metadata[ORIGIN])
        if origin["file"] != shard.name:
            raise UserError(
                f"{shown}: holds the vectors of {origin['file']}, and {shard.name} would replace "
                "them; name another folder"
            )
        return bool((origin["version"], origin["encoding"]) == (shard.version, encoding.id))

    def save_failed(self, failed: Mapping[str, str]) -> None:
        """Write the list of the files of texts that have no vectors; none if there are none."""
        lines = [{"file": name, "error": error} for name, error in failed.items()]
        _save_list(f"{self.url}/{FAILED}", lines)


def save_skipped(out: str, shard: Shard, skipped: Sequence[tuple[int, str]]) -> None:
    """Write the list of the bad rows of a file that were left out; none if there are none.

    Args:
        out: URL of the folder of vectors.
        shard: the file of texts.
        skipped: number of each row, and what is wrong with it.
    """
    lines = [{"file": shard.name, "row": number, "error": error} for number, error in skipped]
    _save_list(f"{out}/{_skipped_file(shard)}", lines)


def _skipped_file(shard: Shard) -> str:
    """Return the name of the list of bad rows of a file, relative to the folder of vectors."""
    return f"{SKIPPED}/{shard.output.removesuffix('.parquet')}.jsonl"


def _save_list(place: str, lines: Sequence[Mapping[str, object]]) -> None:
    """Write lines of JSON; remove the file if there are none."""
    if lines:
        with new_file(place) as stream:
            for line in lines:
                said = json.dumps(line, ensure_ascii=False)
                stream.write(f"{said}\n".encode(errors="backslashreplace"))
        return
    fs, path = locate(place)
    if fs.exists(path):
        fs.rm_file(path)


def origin(shard: Shard, encoding: Encoding, dtype: str) -> dict[bytes, str]:
    """Return the metadata of a file of vectors that says what it was made from.

    Args:
        shard: the file of texts.
        encoding: what the vectors are.
        dtype: in which the model computed them.
    """
    about = {
        "file": shard.name,
        "version": shard.version,
        "encoding": encoding.id,
        "model": encoding.model,
        "model_sha256": encoding.fingerprint,
        "dtype": dtype,
    }
    return {ORIGIN: json.dumps(about)}
