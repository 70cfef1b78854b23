"""BoolQRetrievalDev: find the Wikipedia passage that a yes-no question is about."""

from llm2comp.evaluation.tasks.offline import metadata
from llm2comp.evaluation.tasks.retrieval import RetrievalTask


class BoolQRetrievalDev(RetrievalTask):
    """BoolQ's test split: 3,245 questions over 2,923 passages without their titles; nDCG@10.

    The quick version has 300 questions and 1,000 whole passages, drawn with a fixed seed. It stands
    in for SQuADRetrieval, a test set, when settings are chosen. No article of it is in the sources
    `boolq-train-pairs`, `boolq-titles` and `boolq-train-passages`. `boolq-pairs` holds all of it,
    and `boolq-passages` its passages. Source: Clark et al., 2019.
    """

    source = "boolq-dev"
    quick_questions = 300
    quick_contexts = 1000
    metadata = metadata(
        "BoolQRetrievalDev",
        source,
        "BoolQ's test split, 3,245 questions over 2,923 passages; when quick, "
        f"{quick_questions:,} questions over {quick_contexts:,} passages.",
        type="Retrieval",
        category="t2t",
        main_score="ndcg_at_10",
        date=("2018-01-01", "2019-12-31"),
        domains=["Encyclopaedic", "Written"],
        task_subtypes=["Question answering"],
        license="cc-by-sa-3.0",
        reference="https://github.com/google-research-datasets/boolean-questions",
    )
