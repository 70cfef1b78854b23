"""Write an encoder as a folder that sentence-transformers loads as a `MultiVectorEncoder`."""

from pathlib import Path

import numpy as np
import torch
from sentence_transformers import MultiVectorEncoder, SentenceTransformer

from llm2comp.errors import UserError
from llm2comp.inference.embed import embed
from llm2comp.inference.last_token import Difference, texts_to_compare
from llm2comp.inference.load import load, trusted
from llm2comp.inference.vector_format import Embeddings, smallest_cosine
from llm2comp.model import released
from llm2comp.model.folder.layout import write_layout
from llm2comp.model.folder.names import encoder_name
from llm2comp.model.folder.reference import SAME
from llm2comp.model.loading.tokenizer import FILE
from llm2comp.model.matryoshka.first_tokens import keep_memory_tokens, lineage_with, plain_tokenizer
from llm2comp.model.multi_vector.late_interaction import as_multi_vector, is_multi_vector
from llm2comp.model.multi_vector.memory_vectors import append_memory_vectors
from llm2comp.utils.checksums import write_checksums
from llm2comp.utils.files import atomic_folder, require_folder

CARD = """---
library_name: sentence-transformers
tags: [multi-vector, late-interaction, llm2comp]
---
# {name}, with {k} vectors per text

> Load this folder with `MultiVectorEncoder` of sentence-transformers ({needs}), and not with
> `SentenceTransformer`, which would pool over the text.

llm2comp made it from the encoder `{name}`. A text has {k} vectors of {dimension} dimensions and
unit length: the outputs of its memory tokens. MaxSim compares a query with a document.

```python
from sentence_transformers import MultiVectorEncoder

model = MultiVectorEncoder("path/to/this/folder")
queries = model.encode_query(["Where does the river rise?"])
documents = model.encode_document(["The river rises in the mountains."])
print(model.similarity(queries, documents))
```

The same forward pass gives the single vector of the encoder, as `sentence_embedding` of
`model.encode(texts, output_value=None)`.
"""


def export(name: str, out: Path, memory_tokens: int | None = None) -> Difference:
    """Write a folder of stock modules whose embedding of a text is its k memory vectors.

    The folder is compared with the encoder before it appears: texts with each prompt, in a padded
    batch and alone, as queries and as documents.

    Args:
        name: encoder, as `llm2comp.load` takes it.
        out: folder to write.
        memory_tokens: as `llm2comp.load` takes it.

    Returns:
        The difference that the comparison found.

    Raises:
        UserError: if the encoder cannot be loaded or does not pool several memory tokens, `out`
            holds something else, or the vectors differ.
    """
    if out.exists() and not is_multi_vector(out):
        raise UserError(f"{out} exists and is not an export; choose another --out")
    require_folder(out)
    source, lineage = Path(released.resolve_encoder(name)), released.lineage_of(name)
    if not source.is_dir():
        raise UserError(f"{name} is no folder of this machine; download it first")
    if lineage and (lineage.compiled or lineage.last_token):
        raise UserError(f"{name} is an export already; name the encoder that it was made from")
    encoder = load(name, "float32", memory_tokens=memory_tokens).to("cpu")
    if lineage:
        lineage = lineage_with(lineage, encoder, memory_tokens)
    append_memory_vectors(encoder, name)
    texts = texts_to_compare(encoder)
    expected = embed(encoder, texts, len(texts))
    del encoder
    with atomic_folder(out) as partial:
        needed = _write_model(source, partial, name, memory_tokens)
        stock = MultiVectorEncoder(
            str(partial),
            device="cpu",
            trust_remote_code=trusted(),
            model_kwargs={"dtype": torch.float32},  # whatever the folder is written in
        )
        k = len(stock.encode(texts[0]))
        vectors = expected.reshape(len(texts) * k, -1)
        cosines = [
            smallest_cosine(vectors, _encoded(stock, texts, batch_size, task))
            for batch_size in (len(texts), 1)
            for task in ("query", "document")
        ]
        check = Difference(difference=max(1 - min(cosines), 0.0), allowed=SAME)
        if not check.passed:
            raise UserError(
                f"{out} is not written, because its vectors are not those of {name}: {check}"
            )
        needs = ", ".join(f"{package} {version}" for package, version in needed.items())
        card = CARD.format(name=encoder_name(name), k=k, dimension=vectors.shape[1], needs=needs)
        (partial / "README.md").write_text(card, encoding="utf-8")
        if lineage:
            lineage.write(partial)
        write_checksums(partial)
    return check


def _write_model(
    source: Path, folder: Path, name: str, memory_tokens: int | None
) -> dict[str, str]:
    """Write all that a client reads.

    Returns:
        The versions that a client needs, by package.
    """
    encoder = SentenceTransformer(str(source), device="cpu", trust_remote_code=trusted())
    if memory_tokens is not None:
        keep_memory_tokens(encoder, memory_tokens, name)
    plain = plain_tokenizer(encoder, source)
    as_multi_vector(encoder, name).save_pretrained(str(folder), create_model_card=False)
    plain.save(str(folder / FILE))
    return write_layout(folder)


def _encoded(model: MultiVectorEncoder, texts: list[str], batch_size: int, task: str) -> Embeddings:
    """Return the vectors of all texts `(texts * k, dimension)`, without a prompt of the task."""
    rows = model.encode(
        texts, batch_size=batch_size, task=task, convert_to_numpy=True, show_progress_bar=False
    )
    return np.concatenate(rows)
