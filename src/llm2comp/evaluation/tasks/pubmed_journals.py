"""PubMedJournals: do the titles of one journal's articles lie together?"""

from llm2comp.evaluation.tasks.clusters import DOCUMENTS, QUICK_DOCUMENTS, ClusteringTask
from llm2comp.evaluation.tasks.offline import metadata


class PubMedJournals(ClusteringTask):
    """Titles of PubMed's articles in the file's 20 commonest journals; V-measure.

    Stands in for the paper's Biorxiv and Medrxiv clustering of titles. The
    catalogue's passages and pairs of PubMed have none of these journals.
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
