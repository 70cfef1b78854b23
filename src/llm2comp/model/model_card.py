"""The model card of an encoder folder: what it is, what it was trained on, how to use it."""

from llm2comp.model.lineage import Lineage, StageRecord

TEMPLATE = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, feature-extraction, llm2comp]
---
# {name}, after stage {count} ({last})

A text encoder made of the causal language model `{backbone}` by llm2comp, whose pretext objective
was `{objective}`. An embedding is {embedding}. Attention is {attention}; vectors have {width}
dimensions and unit length; texts are cut at {length} tokens. Method: *Learning to Compress* (Zhang
et al., AAAI-26, arXiv 2511.17129), and the peers that it compares itself to.

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/of/this/folder"{backend})
vectors = model.encode(["The river rises in the mountains."])
```

| stage | objective | data | steps x batch | peak learning rate |
|---|---|---|---|---|
{stages}

Seed {seed}. The whole lineage, with package versions, is in `llm2comp.json`; {weights}.
"""


def model_card(lineage: Lineage, width: int) -> str:
    """Write the card of an encoder from its lineage.

    Args:
        lineage: with at least one stage.
        width: dimensions of an embedding.
    """
    last = lineage.stages[-1]
    to = lineage.compiled.to if lineage.compiled else None
    adapter = "`adapter/` holds what\nthe last stage trained, in PEFT's format"
    return TEMPLATE.format(
        backend=f', backend="{to}"' if to else "",
        weights=f"`{to}/` holds\nthe compiled weights" if to else adapter,
        name=lineage.name,
        count=len(lineage.stages),
        last=last.stage,
        backbone=lineage.backbone.name,
        objective=lineage.stages[0].objective,
        embedding=_embedding(lineage),
        attention="causal" if last.causal else "bidirectional",
        width=width,
        length=lineage.max_length,
        stages="\n".join(map(_row, lineage.stages)),
        seed=lineage.seed,
    )


def _embedding(lineage: Lineage) -> str:
    if lineage.format.pooling == "text":
        return "the mean over the text's own tokens"
    k = lineage.memory.tokens
    return f"the mean over the outputs of {k} memory tokens, which stand behind every text"


def _row(stage: StageRecord) -> str:
    data = ", ".join(source.source for source in stage.data)
    size = f"{stage.steps:,} x {stage.batch_size:,}"
    objective = stage.objective or "contrastive"
    return f"| {stage.stage} | {objective} | {data} | {size} | {stage.learning_rate:g} |"
