"""TwentyNewsgroups: do posts of one group lie together?"""

from llm2comp.evaluation.tasks.clusters import DOCUMENTS, QUICK_DOCUMENTS, ClusteringTask
from llm2comp.evaluation.tasks.offline import metadata

CHARACTERS = 128


class TwentyNewsgroups(ClusteringTask):
    """20 Newsgroups, test split: the beginning of each post, 20 groups; V-measure.

    mteb's set has the subject lines alone; a post here, lower-cased and letters
    only, begins with its subject too, and is cut behind the last word that ends
    within its first 128 characters. Scores do not compare with mteb's. Source:
    Lang, 1995; split and clean-up of Cachopo, 2007.
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
