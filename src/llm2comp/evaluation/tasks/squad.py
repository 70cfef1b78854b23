"""SQuADRetrieval: find the Wikipedia paragraph that a question is about."""

import random

from datasets import Dataset
from mteb.abstasks import AbsTaskRetrieval

from llm2comp.data import catalog
from llm2comp.evaluation.tasks.offline import OfflineTask, metadata

SOURCE = "squad-dev"
QUICK_QUESTIONS = 300
QUICK_PARAGRAPHS = 500
QUICK_CHARACTERS = 320
"""About 64 tokens. Whole paragraphs would take a 135M model three more minutes on two cores."""
SEED = 0


class SQuADRetrieval(OfflineTask, AbsTaskRetrieval):
    """SQuAD v1.1 dev: 10,565 questions over 2,067 paragraphs; nDCG@10.

    The quick version has 300 questions, their paragraphs, and others up to 500 paragraphs, drawn
    with a fixed seed. Each paragraph is truncated after the last word within its first 320
    characters. Quick scores compare only with each other, because an answer may be cut off and
    there are fewer wrong paragraphs.

    Source: Rajpurkar et al., 2016. Do not train on this set.
    """

    metadata = metadata(
        "SQuADRetrieval",
        SOURCE,
        "SQuAD v1.1 dev, 10,565 questions over 2,067 paragraphs; when quick, "
        f"{QUICK_QUESTIONS:,} questions over the first {QUICK_CHARACTERS} characters of "
        f"{QUICK_PARAGRAPHS:,} paragraphs.",
        type="Retrieval",
        category="t2t",
        main_score="ndcg_at_10",
        date=("2016-01-01", "2016-12-31"),
        domains=["Encyclopaedic", "Written"],
        task_subtypes=["Question answering"],
        license="cc-by-sa-4.0",
        reference="https://rajpurkar.github.io/SQuAD-explorer/",
    )
    k_values = (1, 3, 5, 10, 20, 100)
    """mteb keeps as many hits per question as the largest; its default, 1,000, is half of all."""

    def read(self) -> None:
        """Take the whole set, or the sample of the quick version."""
        paragraphs: dict[str, int] = {}  # by number, in the order of the file
        questions = [
            (row["question"], paragraphs.setdefault(row["context"], len(paragraphs)))
            for row in catalog.rows(SOURCE)
        ]
        texts = list(paragraphs)
        chosen = list(range(len(texts)))
        if self.quick:
            draw = random.Random(SEED)
            questions = draw.sample(questions, min(QUICK_QUESTIONS, len(questions)))
            gold = {paragraph for _, paragraph in questions}
            others = [index for index in chosen if index not in gold]
            spare = max(0, min(QUICK_PARAGRAPHS - len(gold), len(others)))
            chosen = sorted(gold.union(draw.sample(others, spare)))
            texts = [cut(text, QUICK_CHARACTERS) for text in texts]
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


def cut(text: str, characters: int) -> str:
    """Truncate a text after the last word that ends within its first `characters` characters."""
    if len(text) <= characters:
        return text
    whole_words, _, _ = text[: characters + 1].rpartition(" ")
    return whole_words or text[:characters]
