"""TwentyNewsgroups: cluster posts by their group."""

from llm2comp.evaluation.tasks.clusters import DOCUMENTS, QUICK_DOCUMENTS, ClusteringTask
from llm2comp.evaluation.tasks.offline import metadata

CHARACTERS = 128


class TwentyNewsgroups(ClusteringTask):
    """20 Newsgroups, test split: the beginning of each post, 20 groups; V-measure.

    Scores do not compare with those on mteb's set, which has the subject lines only. A post here
    also begins with its subject. It is in lower case and letters only, and is truncated after the
    last word within its first 128 characters. Source: Lang, 1995; split and cleaned by Cachopo,
    2007.
    """

    source = "20newsgroups"
    characters = CHARACTERS
    metadata = metadata(
        "TwentyNewsgroups",
        source,
        f"20 Newsgroups test split, the first {CHARACTERS} characters of {DOCUMENTS:,} of 7,528 "
        f"posts (quick: {QUICK_DOCUMENTS:,}).",
        type="Clustering",
        main_score="v_measure",
        date=("1995-01-01", "1995-12-31"),
        domains=["News", "Written"],
        task_subtypes=["Thematic clustering"],
        annotations_creators="derived",
        reference="https://scikit-learn.org/0.19/datasets/twenty_newsgroups.html",
    )
