"""CTKD: with memory, predict the same as with the text itself (paper, "Distillation")."""

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from llm2comp.model.compressor import Decoder
from llm2comp.training.objectives.batch import Batch
from llm2comp.training.objectives.chunked_loss import mean_over_samples, sum_over_chunks
from llm2comp.training.objectives.objective import Compression


class Distillation(Compression):
    """The divergence `KL(teacher || student)` at temperature 1.

    Teacher and student are the same frozen model. The teacher reads `BOS n_1 … n_L`, and the
    student reads `BOS memory n_{a+1} … n_L`. The loss compares their distributions for the tokens
    `n_{a+1} … n_L` and for the token after `n_L`. It is the mean over positions, then over samples.
    """

    def loss_from_memory(self, decoder: Decoder, memory: Tensor, batch: Batch) -> Tensor:
        """Return the loss in nats per position."""
        first = torch.ones_like(batch.continuation_mask[:, :1])
        targets = torch.cat([first, batch.continuation_mask], dim=1)
        student = decoder.student_states(memory, batch.continuation_ids, targets)
        teacher = decoder.teacher_states(batch.passage_ids, batch.teacher_targets)

        def loss(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
            log_student = decoder.logits(student).log_softmax(-1)
            log_teacher = decoder.logits(teacher).log_softmax(-1)
            divergence = kl_div(log_student, log_teacher, reduction="none", log_target=True)
            return (divergence.sum(-1) * weights).sum()

        return sum_over_chunks(loss, student, teacher, mean_over_samples(targets))
