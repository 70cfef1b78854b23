"""The base class of the clustering tasks."""

from typing import ClassVar

from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTaskClustering

from llm2comp.data import catalog
from llm2comp.evaluation.tasks.offline import OfflineTask, cut

DOCUMENTS = 2048
QUICK_DOCUMENTS = 512


class ClusteringTask(OfflineTask, AbsTaskClustering):
    """Clusters the labelled texts of a packaged source.

    mteb's protocol: encode a random sample of the documents. Then, ten times, draw 16,384 of them
    with replacement and cluster them by k-means, with as many clusters as there are labels.

    Attributes:
        source: name of the packaged source.
        characters: texts are truncated to this many characters; `None` keeps them whole.
    """

    source: ClassVar[str]
    characters: ClassVar[int | None] = None
    max_fraction_of_documents_to_embed: float | None = None

    def __init__(self, quick: bool = False) -> None:
        super().__init__(quick)
        self.documents = QUICK_DOCUMENTS if quick else DOCUMENTS
        self.max_document_to_embed = self.documents

    def read(self) -> None:
        """Take all documents. mteb draws the sample with its own seed."""
        rows = list(catalog.rows(self.source))
        texts = [row["text"] for row in rows]
        if self.characters is not None:
            texts = [cut(text, self.characters) for text in texts]
        test = Dataset.from_dict({"sentences": texts, "labels": [row["label"] for row in rows]})
        self.dataset = DatasetDict(test=test)
        self.texts = self.samples = min(self.documents, len(rows))
