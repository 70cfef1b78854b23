"""SQuADRetrieval: find the Wikipedia paragraph that a question is about."""

from llm2comp.evaluation.tasks.offline import metadata
from llm2comp.evaluation.tasks.retrieval import RetrievalTask


class SQuADRetrieval(RetrievalTask):
    """SQuAD v1.1 dev: 10,565 questions over 2,067 paragraphs; nDCG@10.

    The quick version has 300 questions, their paragraphs, and others up to 500 paragraphs, drawn
    with a fixed seed. Each paragraph is truncated after the last word within its first 320
    characters. Quick scores compare only with each other, because an answer may be cut off and
    there are fewer wrong paragraphs.

    Source: Rajpurkar et al., 2016. Do not train on this set.
    """

    source = "squad-dev"
    quick_questions = 300
    quick_contexts = 500
    quick_characters = 320
    """About 64 tokens. Whole paragraphs would take a 135M model three more minutes on two cores."""
    metadata = metadata(
        "SQuADRetrieval",
        source,
        "SQuAD v1.1 dev, 10,565 questions over 2,067 paragraphs; when quick, "
        f"{quick_questions:,} questions over the first {quick_characters} characters of "
        f"{quick_contexts:,} paragraphs.",
        type="Retrieval",
        category="t2t",
        main_score="ndcg_at_10",
        date=("2016-01-01", "2016-12-31"),
        domains=["Encyclopaedic", "Written"],
        task_subtypes=["Question answering"],
        license="cc-by-sa-4.0",
        reference="https://rajpurkar.github.io/SQuAD-explorer/",
    )
