"""The base class of the retrieval tasks."""

import random
from typing import ClassVar

from datasets import Dataset
from mteb.abstasks import AbsTaskRetrieval

from llm2comp.data import catalog
from llm2comp.evaluation.tasks.offline import OfflineTask, cut

SEED = 0


class RetrievalTask(OfflineTask, AbsTaskRetrieval):
    """Finds the context that a question of a packaged source belongs to; nDCG@10.

    The quick version has a number of questions, their contexts, and other contexts up to a number,
    drawn with a fixed seed.

    Attributes:
        source: name of the packaged source. Its rows have `question` and `context`.
        quick_questions: questions of the quick version.
        quick_contexts: contexts of the quick version, those of its questions included.
        quick_characters: when quick, contexts are truncated to this many characters; `None` keeps
            them whole.
    """

    source: ClassVar[str]
    quick_questions: ClassVar[int]
    quick_contexts: ClassVar[int]
    quick_characters: ClassVar[int | None] = None
    k_values = (1, 3, 5, 10, 20, 100)
    """mteb keeps as many hits per question as the largest; its default, 1,000, is half of all."""

    def read(self) -> None:
        """Take the whole set, or the sample of the quick version."""
        numbers: dict[str, int] = {}  # of contexts, in the order of the file
        questions = [
            (row["question"], numbers.setdefault(row["context"], len(numbers)))
            for row in catalog.rows(self.source)
        ]
        texts = list(numbers)
        chosen = list(range(len(texts)))
        if self.quick:
            draw = random.Random(SEED)
            questions = draw.sample(questions, min(self.quick_questions, len(questions)))
            gold = {context for _, context in questions}
            others = [index for index in chosen if index not in gold]
            spare = max(0, min(self.quick_contexts - len(gold), len(others)))
            chosen = sorted(gold.union(draw.sample(others, spare)))
            if self.quick_characters is not None:
                texts = [cut(text, self.quick_characters) for text in texts]
        corpus = [{"id": f"p{index}", "title": "", "text": texts[index]} for index in chosen]
        queries = [{"id": f"q{n}", "text": question} for n, (question, _) in enumerate(questions)]
        relevant = {f"q{n}": {f"p{index}": 1} for n, (_, index) in enumerate(questions)}
        self.dataset = {
            "default": {
                "test": {
                    "corpus": Dataset.from_list(corpus),
                    "queries": Dataset.from_list(queries),
                    "relevant_docs": relevant,
                    "top_ranked": None,
                }
            }
        }
        self.samples = len(queries)
        self.texts = len(queries) + len(corpus)
