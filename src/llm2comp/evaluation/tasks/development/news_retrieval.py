"""NewsRetrievalDev: find the news article of a title."""

from llm2comp.evaluation.tasks.offline import metadata
from llm2comp.evaluation.tasks.retrieval import RetrievalTask


class NewsRetrievalDev(RetrievalTask):
    """Titles over 403 whole articles of 27 to 30 March 2017, of 2,700 characters; nDCG@10.

    It shows what an encoder does with long texts. The quick version has 150 articles and their
    titles, drawn with a fixed seed. `news-titles` has only older articles. `news-passages` holds
    the articles, without their titles. Source: Dai, 2017.
    """

    source = "news-dev"
    quick_questions = 150
    quick_contexts = 150
    metadata = metadata(
        "NewsRetrievalDev",
        source,
        f"Titles over 403 whole news articles; when quick, {quick_contexts} of them.",
        type="Retrieval",
        category="t2t",
        main_score="ndcg_at_10",
        date=("2017-03-27", "2017-03-30"),
        domains=["News", "Written"],
        task_subtypes=["Article retrieval"],
        annotations_creators="derived",
        reference="https://doi.org/10.7910/DVN/GMFCTR",
    )
