"""The tasks of this package by name.

To add a task, write one file with a subclass of an mteb task and of `OfflineTask`, and add one line
here.
"""

from llm2comp.evaluation.tasks.development.boolq_retrieval import BoolQRetrievalDev
from llm2comp.evaluation.tasks.development.news_retrieval import NewsRetrievalDev
from llm2comp.evaluation.tasks.development.pubmed_journals import PubMedJournalsDev
from llm2comp.evaluation.tasks.development.sts_benchmark import STSBenchmarkDev
from llm2comp.evaluation.tasks.offline import OfflineTask
from llm2comp.evaluation.tasks.privacy_policy import PrivacyPolicy
from llm2comp.evaluation.tasks.pubmed_journals import PubMedJournals
from llm2comp.evaluation.tasks.r8 import R8
from llm2comp.evaluation.tasks.squad import SQuADRetrieval
from llm2comp.evaluation.tasks.sts17 import STS17
from llm2comp.evaluation.tasks.sts_benchmark import STSBenchmark
from llm2comp.evaluation.tasks.trec import TREC
from llm2comp.evaluation.tasks.twenty_newsgroups import TwentyNewsgroups

TASKS: dict[str, type[OfflineTask]] = {
    "STSBenchmark": STSBenchmark,
    "STS17": STS17,
    "TwentyNewsgroups": TwentyNewsgroups,
    "PubMedJournals": PubMedJournals,
    "TREC": TREC,
    "R8": R8,
    "SQuADRetrieval": SQuADRetrieval,
    "PrivacyPolicy": PrivacyPolicy,
}
"""All tasks by name, in the order of tables."""

DEVELOPMENT: dict[str, type[OfflineTask]] = {
    "STSBenchmarkDev": STSBenchmarkDev,
    "BoolQRetrievalDev": BoolQRetrievalDev,
    "PubMedJournalsDev": PubMedJournalsDev,
    "NewsRetrievalDev": NewsRetrievalDev,
}
"""Tasks for choosing settings. None of them is a test set."""
