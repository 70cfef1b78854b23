"""Encode one file of texts into one file of vectors: the part that every engine has in common."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sentence_transformers import SentenceTransformer

from llm2comp.data.hub import cached_model
from llm2comp.data.text_files import read_rows, require_id
from llm2comp.errors import UserError, one_line
from llm2comp.inference.bulk.encoding import Encoding, Settings
from llm2comp.inference.bulk.locations import local_copy, new_file
from llm2comp.inference.bulk.shards import Result, Shard
from llm2comp.inference.bulk.vector_folder import origin, save_skipped
from llm2comp.inference.calibration import vector_format
from llm2comp.inference.embed import embed
from llm2comp.inference.embedding_files import Content, VectorTable
from llm2comp.inference.encode_file import chunks, require_finite_rows
from llm2comp.inference.load import load
from llm2comp.inference.vector_format import require_precision
from llm2comp.inference.worker_pool import WorkerEndedError, Workers
from llm2comp.model import released
from llm2comp.model.matryoshka.first_tokens import memory_tokens_of
from llm2comp.utils.checksums import fingerprint

HASH_LENGTH = 64
"""Characters of a hash of files; the commit of a model of the hub has 40."""
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Encoder:
    """An encoder that was loaded to encode many files.

    Args:
        settings: how they are encoded.

    Raises:
        UserError: if it cannot be loaded.
    """

    def __init__(self, settings: Settings) -> None:
        require_precision(settings.precision)
        self.settings = settings
        self.model = load(
            settings.model,
            settings.dtype,
            settings.merge_threshold,
            memory_tokens=settings.memory_tokens,
        )

    def encoding(self, known: Encoding | None, out: str) -> Encoding:
        """Return what the vectors of the model are.

        Args:
            known: what those of the folder are, if something was encoded into it.
            out: name of the folder, for the message.

        Raises:
            UserError: if they are not the same, or the model has fewer dimensions than wanted.
        """
        if known is not None:
            known.require_same(self._fingerprint(known.fingerprint), self.settings, out)
            return known
        settings, mark = self.settings, self._fingerprint()
        whole = (settings.merge_threshold, settings.memory_tokens) == (None, None)
        named = settings.model if whole else None
        vectors = vector_format(self.model, settings.dim, settings.precision, named)
        content = Content(vectors, settings.prompt, memory_tokens_of(self.model))
        return Encoding(settings.model, mark, settings.asked, content)

    def require(self, encoding: Encoding) -> None:
        """Check that this machine has the model whose vectors are encoded.

        Raises:
            UserError: if it has another one of the same name.
        """
        if self._fingerprint(encoding.fingerprint) != encoding.fingerprint:
            raise UserError(
                f"model {self.settings.model!r} is another one on this machine; give all machines "
                "one copy of its folder"
            )

    def _fingerprint(self, known: str | None = None) -> str:
        """Return the commit of a model of the hub, or a hash of the files of a folder.

        The files of a commit in the cache become more, whenever something needs another one.

        Args:
            known: fingerprint to compare with. Older versions hashed the files of all models.

        Raises:
            UserError: if there is no fingerprint.
        """
        name = self.settings.model
        local = released.local_encoder(name)
        folder = local or cached_model(name)
        if folder is None:
            raise UserError(
                f"{name} is in no cache of the hub, so later calls could not know it again; "
                "download it to a folder, and name that"
            )
        is_hashed = local is not None or (known is not None and len(known) == HASH_LENGTH)
        return fingerprint(folder) if is_hashed else folder.name

    def encode(
        self, shard: Shard, out: str, encoding: Encoding, workers: Workers | None = None
    ) -> Result:
        """Encode a file, and return what became of it.

        Args:
            shard: the file of texts.
            out: URL of the folder of vectors.
            encoding: what the vectors are.
            workers: processes that compute in place of this one.

        Raises:
            WorkerEndedError: if one of them ended.
        """
        try:
            return self._encode(shard, out, encoding, workers)
        except WorkerEndedError:
            raise
        except Exception as error:
            if _is_disk_full(error):
                said = (
                    f"disk full ({one_line(error)}) at {shard.output}; free some space, and repeat"
                )
                return Result(
                    shard.name, error=f"{said} the command, which goes on from here", stop=True
                )
            mistake = isinstance(error, UserError)
            said = one_line(error, None)
            if not mistake:
                said = f"{shard.name}: {type(error).__name__}: {said}"
            return Result(shard.name, error=said, again=not mistake)

    def _encode(
        self, shard: Shard, out: str, encoding: Encoding, workers: Workers | None
    ) -> Result:
        settings, content = self.settings, encoding.content
        about = origin(shard, encoding, _dtype_of(self.model))
        done = 0
        with local_copy(shard.url) as file, _named(file, shard.name):
            rows = _Rows(file, settings.keep, skips=settings.on_bad_row == "skip")
            with new_file(f"{out}/{shard.output}") as stream:
                table = VectorTable(stream, content, settings.keep, about)
                try:
                    for texts in chunks(rows.texts(), settings.batch_size):
                        vectors = embed(
                            self.model, texts, settings.batch_size, settings.prompt, workers
                        )
                        require_finite_rows(vectors, file, done)
                        done += len(texts)
                        table.write(rows.kept(texts), content.vectors.store(vectors))
                finally:
                    table.close()
                if rows.skipped and not done:
                    number, reason = rows.skipped[0]
                    raise UserError(
                        f"{file}: all rows are bad; the first is row {number}: {reason}"
                    )
                save_skipped(out, shard, rows.skipped)  # before the vectors have their name
        return Result(shard.name, done, skipped=len(rows.skipped))


class _Rows:
    """Reads the texts of a file, and holds the ids of those that are not written yet.

    Attributes:
        skipped: the number of each bad row that was left out, and what is wrong with it.
    """

    def __init__(self, file: Path, keep: tuple[str, ...], *, skips: bool) -> None:
        self.file = file
        self.keep = keep
        self.ids: list[str] = []
        self.skipped: list[tuple[int, str]] = []
        self.on_bad_row = self._skip if skips else None

    def texts(self) -> Iterator[str]:
        for number, text, values in read_rows(self.file, ["text", *self.keep], self.on_bad_row):
            if "id" in self.keep:
                place = f"{self.file}:{number}: "
                try:
                    self.ids.append(require_id(values.get("id"), place[:-2]))
                except UserError as error:
                    if self.on_bad_row is None:
                        raise
                    self.on_bad_row(number, str(error).removeprefix(place))
                    continue
            yield text

    def _skip(self, number: int, reason: str) -> None:
        self.skipped.append((number, reason))

    def kept(self, texts: list[str]) -> list[list[str]]:
        """Return the columns that are kept of the next texts."""
        ids, self.ids = self.ids[: len(texts)], self.ids[len(texts) :]
        return [{"id": ids, "text": texts}[name] for name in self.keep]


@contextmanager
def _named(file: Path, name: str) -> Iterator[None]:
    """Let messages name a file as the user does, and not its copy on this machine."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(str(file), name)) from error


def _is_disk_full(error: BaseException | None) -> bool:
    """Return whether an error, or what caused it, is that no more can be written."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


def _dtype_of(model: SentenceTransformer) -> str:
    """Return the type of a model's weights; a compiled one has none."""
    weight = next(model.parameters(), None)
    return "compiled" if weight is None else str(weight.dtype).removeprefix("torch.")
