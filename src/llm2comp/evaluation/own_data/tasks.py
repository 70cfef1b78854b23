"""mteb tasks over files of one's own, so that they are scored and stored as all tasks are."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTask, AbsTaskRetrieval, AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata

from llm2comp.data import files
from llm2comp.errors import UserError
from llm2comp.evaluation.own_data.beir import parts, qrels_of, read_beir
from llm2comp.evaluation.own_data.pairs import read_pairs
from llm2comp.evaluation.own_data.rows import Retrieval, Scored
from llm2comp.evaluation.tasks.offline import OfflineTask

NAME_CHARACTERS = 40
"""A file name longer than this is cut in the name of its task, which is part of other file names.
"""
TEST = "test"


class OwnData:
    """A file or folder of one's own, read once. Its tasks are made from what was read.

    Args:
        path: a .jsonl, .csv or .parquet file of pairs or scored pairs, a folder in the layout of
            BEIR with one file of judgements, or such a file of judgements.

    Attributes:
        path: as given.
        name: name of the task: the file's name and the beginning of its hash, because scores on
            another content do not compare.
        sha256: of the content.

    Raises:
        UserError: if it cannot be read or holds a bad row; the message names file and line.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        if self.path.is_dir():
            self.path = qrels_of(self.path)
        if self.path.suffix == ".tsv":
            label = f"{self.path.resolve().parent.parent.name}-{self.path.stem}"
            self.rows: Retrieval | Scored = read_beir(self.path)
            self.sha256 = _sha256(*parts(self.path))
        else:
            _require_columns(self.path)
            label = self.path.name
            self.rows = read_pairs(self.path)
            self.sha256 = _sha256(self.path)
        readable = label.encode(errors="replace").decode()[:NAME_CHARACTERS]
        self.name = f"{readable}@{self.sha256[:8]}"

    @property
    def is_test_set(self) -> bool:
        """Whether its judgements are those of a test split."""
        return self.path.suffix == ".tsv" and self.path.stem == TEST

    def task(self) -> AbsTask:
        """Return a new task. Tasks of mteb change while they run, so each serves once."""
        if isinstance(self.rows, Retrieval):
            return OwnRetrieval(self, self.rows)
        return OwnScored(self, self.rows)


class OwnRetrieval(OfflineTask, AbsTaskRetrieval):
    """Search for the answers of queries among the documents of one's own data; nDCG@10."""

    k_values = (1, 3, 5, 10, 20, 100)

    def __init__(self, data: OwnData, rows: Retrieval) -> None:
        self.metadata = _metadata(data, "Retrieval", "ndcg_at_10", "t2t")
        self.rows = rows
        super().__init__()

    def read(self) -> None:
        """Give mteb what was read."""
        corpus = [
            {"id": name, "title": title, "text": text}
            for name, (title, text) in self.rows.corpus.items()
        ]
        queries = [{"id": name, "text": text} for name, text in self.rows.queries.items()]
        split: Any = {
            "corpus": Dataset.from_list(corpus),
            "queries": Dataset.from_list(queries),
            "relevant_docs": {query: dict(of) for query, of in self.rows.relevant.items()},
            "top_ranked": None,
        }
        self.dataset = {"default": {TEST: split}}
        self.samples = len(queries)
        self.texts = len(queries) + len(corpus)


class OwnScored(OfflineTask, AbsTaskSTS):
    """Rank the scored pairs of one's own data by cosine; Spearman correlation with the scores."""

    def __init__(self, data: OwnData, rows: Scored) -> None:
        self.metadata = _metadata(data, "STS", "cosine_spearman", "t2t")
        self.rows = rows
        super().__init__()

    def read(self) -> None:
        """Give mteb what was read."""
        pairs = {
            "sentence1": self.rows.anchors,
            "sentence2": self.rows.positives,
            "score": self.rows.scores,
        }
        self.dataset = DatasetDict({TEST: Dataset.from_dict(pairs)})
        self.samples = len(self.rows.scores)
        self.texts = 2 * self.samples


def read_all(data: str | Path | Sequence[str | Path]) -> list[OwnData]:
    """Read a file or folder, or each of several.

    Raises:
        UserError: if one of them cannot be read, or two have the same content.
    """
    paths = [data] if isinstance(data, str | Path) else data
    read = [OwnData(path) for path in paths]
    first: dict[str, OwnData] = {}
    for one in read:
        if first.setdefault(one.name, one) is not one:
            raise UserError(f"{one.path} is the same as {first[one.name].path}; name one of them")
    return read


def _metadata(data: OwnData, kind: str, main_score: str, category: str) -> TaskMetadata:
    fields: dict[str, Any] = {"type": kind, "main_score": main_score, "category": category}
    return TaskMetadata(
        name=data.name,
        dataset={"path": data.name, "revision": data.sha256},
        description=f"The data of {data.name}.",
        reference=None,
        modalities=["text"],
        eval_splits=[TEST],
        eval_langs=["eng-Latn"],
        date=None,
        domains=None,
        task_subtypes=None,
        license=None,
        annotations_creators=None,
        dialect=None,
        sample_creation=None,
        bibtex_citation=None,
        **fields,
    )


def _require_columns(path: Path) -> None:
    """Check that a file is of a kind that has columns."""
    suffixes = [suffix for suffix in files.READERS if suffix != ".txt"]
    if path.suffix.lower() not in suffixes:
        raise UserError(
            f"{path}: cannot be evaluated on; give a file of pairs ({', '.join(suffixes)}) or a "
            "folder in the layout of BEIR"
        )


def _sha256(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
