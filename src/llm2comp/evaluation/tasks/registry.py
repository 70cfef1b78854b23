"""The tasks, as mteb tasks whose data come from the catalogue and not from the hub.

A task is one file that subclasses an mteb task and :class:`~.offline.OfflineTask`,
and one line here.
"""

from llm2comp.evaluation.tasks.offline import OfflineTask
from llm2comp.evaluation.tasks.privacy_policy import PrivacyPolicy
from llm2comp.evaluation.tasks.pubmed_journals import PubMedJournals
from llm2comp.evaluation.tasks.r8 import R8
from llm2comp.evaluation.tasks.squad import SQuADRetrieval
from llm2comp.evaluation.tasks.sts17 import STS17
from llm2comp.evaluation.tasks.sts_benchmark import STSBenchmark
from llm2comp.evaluation.tasks.sts_benchmark_dev import STSBenchmarkDev
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
"""Every task by its name, in the order in which tables show them."""

DEVELOPMENT: dict[str, type[OfflineTask]] = {"STSBenchmarkDev": STSBenchmarkDev}
"""Tasks to choose settings by; no test set is among them."""

__all__ = ["DEVELOPMENT", "TASKS", "OfflineTask"]
