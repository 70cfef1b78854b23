"""RC: from memory, the frozen model predicts the text itself (paper, "Reconstruction")."""

from torch import Tensor

from llm2comp.model.compressor import Decoder
from llm2comp.training.objectives.batch import Batch
from llm2comp.training.objectives.chunked_loss import token_loss_from_memory
from llm2comp.training.objectives.objective import Compression


class Reconstruction(Compression):
    """The cross-entropy of the text given memory. The text is the whole passage `n_1 … n_L`."""

    whole_passage = True

    def loss_from_memory(self, decoder: Decoder, memory: Tensor, batch: Batch) -> Tensor:
        """Return the loss in nats per token."""
        return token_loss_from_memory(decoder, memory, batch.text_ids, batch.text_mask)
