"""Load folders with sentence-transformers alone, and write the embeddings of texts as JSON.

Each line of the input is `{"folder": ..., "texts": [...]}`. llm2comp is not imported.
"""

import json
import sys

import torch
from sentence_transformers import SentenceTransformer
from transformers.utils import logging


def main() -> None:
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    for line in sys.stdin:
        wanted = json.loads(line)
        model = SentenceTransformer(wanted["folder"], device="cpu")
        assert "llm2comp" not in sys.modules
        answer = {
            "dimension": model.get_embedding_dimension(),
            "together": model.encode(wanted["texts"]).tolist(),
            "alone": [model.encode(text).tolist() for text in wanted["texts"]],
        }
        sys.stdout.write(f"{json.dumps(answer)}\n")
        sys.stdout.flush()


main()
