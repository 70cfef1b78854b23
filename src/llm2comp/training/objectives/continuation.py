"""NLL: from memory, the frozen model predicts how the text continues (paper, "Continuation")."""

from torch import Tensor

from llm2comp.model.compressor import Decoder
from llm2comp.training.objectives.batch import Batch
from llm2comp.training.objectives.chunked_loss import token_loss_from_memory
from llm2comp.training.objectives.objective import Compression


class Continuation(Compression):
    """The cross-entropy of the continuation `n_{a+1} … n_L`, given memory."""

    def loss_from_memory(self, decoder: Decoder, memory: Tensor, batch: Batch) -> Tensor:
        """Return the loss in nats per token."""
        return token_loss_from_memory(
            decoder, memory, batch.continuation_ids, batch.continuation_mask
        )
