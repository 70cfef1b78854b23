"""PubMedJournalsDev: cluster titles of articles by their journal, in an older file."""

from llm2comp.evaluation.tasks.clusters import DOCUMENTS, QUICK_DOCUMENTS, ClusteringTask
from llm2comp.evaluation.tasks.offline import metadata


class PubMedJournalsDev(ClusteringTask):
    """Titles of PubMed articles in the 20 most common journals of 1977 to 1979; V-measure.

    It has no title and no journal of PubMedJournals, a test set. `pubmed-pairs` has 2,411 of the
    titles, with their abstracts and without their journals.
    """

    source = "pubmed-journals-dev"
    metadata = metadata(
        "PubMedJournalsDev",
        source,
        f"{DOCUMENTS:,} of 4,333 PubMed titles of 20 journals (quick: {QUICK_DOCUMENTS:,}).",
        type="Clustering",
        main_score="v_measure",
        date=("1977-01-01", "1979-12-31"),
        domains=["Academic", "Medical", "Written"],
        task_subtypes=["Thematic clustering"],
        annotations_creators="derived",
        reference="https://pubmed.ncbi.nlm.nih.gov",
    )
