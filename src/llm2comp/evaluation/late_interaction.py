"""Score the k memory vectors of each text with MaxSim, on the tasks that compare two texts."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from mteb.abstasks import AbsTask, AbsTaskRetrieval, AbsTaskSTS
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper

from llm2comp.errors import UserError
from llm2comp.model.multi_vector.max_sim import MaxSim

logger = logging.getLogger(__name__)


class LateInteractionEncoder(SentenceTransformerEncoderWrapper):
    """An mteb encoder whose texts have k vectors each.

    Args:
        encoder: gives the k vectors of a text as one row.
        max_sim: compares such rows.
    """

    def __init__(self, encoder: SentenceTransformerEncoderWrapper, max_sim: MaxSim) -> None:
        super().__init__(encoder.model)
        self.encoder = encoder
        self.max_sim = max_sim

    def encode(self, inputs: Any, **kwargs: Any) -> Any:
        """Return the vectors `(texts, k * dimension)` of the texts in mteb's batches."""
        return self.encoder.encode(inputs, **kwargs)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the MaxSim `(queries, documents)`."""
        return self.max_sim(torch.as_tensor(embeddings1), torch.as_tensor(embeddings2))

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the mean of the MaxSim in both directions `(pairs,)`."""
        return self.max_sim.symmetric(torch.as_tensor(embeddings1), torch.as_tensor(embeddings2))


def require_tasks(tasks: Sequence[AbsTask], *, named: bool) -> None:
    """Check that MaxSim can score tasks; of a suite, say which ones are left out.

    Args:
        tasks: the tasks.
        named: whether the user named them, and not a suite.

    Raises:
        UserError: if it cannot score a named task, or none.
    """
    others = [task.metadata.name for task in tasks if not _compares_texts(task)]
    if not others:
        return
    why = f"MaxSim compares two texts, and {', '.join(others)} has no such score"
    if named or len(others) == len(tasks):
        raise UserError(f"{why}; leave it out, or score one vector per text")
    logger.warning("%s; left out", why)


def with_max_sim(tasks: Sequence[AbsTask]) -> list[AbsTask]:
    """Return the tasks that MaxSim can score, changed so that it is their main score.

    mteb's main score of STS is the cosine of two vectors. Beside it there is `spearman`, which is
    that of the model's own similarity.
    """
    chosen = [task for task in tasks if _compares_texts(task)]
    for task in chosen:
        if isinstance(task, AbsTaskSTS):
            task.metadata = task.metadata.model_copy(update={"main_score": "spearman"})
    return chosen


def _compares_texts(task: AbsTask) -> bool:
    return isinstance(task, AbsTaskRetrieval | AbsTaskSTS)
