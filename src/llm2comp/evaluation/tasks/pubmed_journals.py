"""PubMedJournals: cluster titles of articles by their journal."""

from llm2comp.evaluation.tasks.clusters import DOCUMENTS, QUICK_DOCUMENTS, ClusteringTask
from llm2comp.evaluation.tasks.offline import metadata


class PubMedJournals(ClusteringTask):
    """Titles of PubMed articles in the 20 most common journals of the file; V-measure.

    It stands in for the paper's clustering of Biorxiv and Medrxiv titles. The packaged passages and
    pairs from PubMed have no article of these journals.
    """

    source = "pubmed-journals"
    metadata = metadata(
        "PubMedJournals",
        source,
        f"{DOCUMENTS:,} of 2,828 PubMed titles of 20 journals (quick: {QUICK_DOCUMENTS:,}).",
        type="Clustering",
        main_score="v_measure",
        date=("2020-01-01", "2021-12-31"),
        domains=["Academic", "Medical", "Written"],
        task_subtypes=["Thematic clustering"],
        annotations_creators="derived",
        reference="https://pubmed.ncbi.nlm.nih.gov",
    )
