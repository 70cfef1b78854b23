"""Reference embeddings in an encoder folder, by which any client can check its own."""

import torch
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer
from torch import Tensor

TEXTS = (
    "Snow",
    "The river rises in the mountains.",
    "In 1969 two men walked on the Moon for two and a half hours, and brought back 21.5 kg of it. "
    "Zwei Cafés in Zürich öffnen erst um 9:30 Uhr. The museum keeps a small collection of Roman "
    "coins that were found near the harbour, and the orchestra rehearsed the second movement until "
    "late in the evening. def mean(values): return sum(values) / len(values)",
)
"""From one word to a passage, because errors in positions and windows grow with the length."""
SAME = 1e-5
"""Largest cosine distance that counts as rounding of float32 on one machine."""
SAME_ELSEWHERE, SAME_IN_HALF = 1e-4, 1e-2
"""The same on another machine, and in half precision."""


class Reference(BaseModel):
    """Embeddings of fixed texts, in float32.

    Attributes:
        texts: that were embedded.
        prompt: that was put before each text.
        embeddings: one row per text; of unit length, unless an encoder of others has it otherwise.
    """

    texts: list[str]
    prompt: str
    embeddings: list[list[float]]

    @classmethod
    def of(cls, embeddings: Tensor) -> "Reference":
        """Return the reference of an encoder.

        Args:
            embeddings: as `embed_alone` returns them for `TEXTS`.
        """
        rows = [[round(value, 7) for value in row] for row in embeddings.tolist()]
        return cls(texts=list(TEXTS), prompt="", embeddings=rows)

    def is_near(self, other: "Reference") -> bool:
        """Return whether another machine may have measured the same encoder."""
        if (self.texts, self.prompt) != (other.texts, other.prompt):
            return False
        own, theirs = torch.tensor(self.embeddings), torch.tensor(other.embeddings)
        return own.shape == theirs.shape and self._distance(own, theirs) <= SAME_ELSEWHERE

    def difference(self, encoder: SentenceTransformer) -> float:
        """Return the largest distance between the reference and an encoder's embeddings.

        It is half of the squared Euclidean distance over the squared length, which is the cosine
        distance of embeddings of one length. Embeddings of another length are far away too.
        """
        found = embed_alone(encoder, self.texts, self.prompt)
        return self._distance(torch.tensor(self.embeddings), found)

    @staticmethod
    def _distance(own: Tensor, found: Tensor) -> float:
        distances = (own - found).square().sum(1)
        return float((distances / own.square().sum(1)).max() / 2)


def embed_alone(
    encoder: SentenceTransformer, texts: list[str] | tuple[str, ...] = TEXTS, prompt: str = ""
) -> Tensor:
    """Return the embeddings of texts `(texts, dimension)`, each read without padding."""
    training = encoder.training
    rows = [
        encoder.encode(text, prompt=prompt, convert_to_tensor=True, show_progress_bar=False)
        for text in texts
    ]
    encoder.train(training)
    return torch.stack(rows).float().cpu()
