"""The model card of an encoder folder: what the encoder is, its training, and how to use it."""

from llm2comp.model.lineage import Lineage, StageRecord

TEMPLATE = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, feature-extraction, llm2comp]
---
# {name}, after stage {count} ({last})

A text encoder that llm2comp made from the causal language model `{backbone}`. Its pretext
objective was `{objective}`. An embedding is {embedding}. Attention is {attention}. Embeddings have
{dimension} dimensions and unit length. Texts are truncated to {length} tokens. The method is
*Learning to Compress* (Zhang et al., AAAI-26, arXiv 2511.17129) or one that it is compared with
there.

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder"{backend})
embeddings = model.encode(["The river rises in the mountains."])
```

| stage | objective | data | steps x batch | peak learning rate | LoRA on | without LoRA |
|---|---|---|---|---|---|---|
{stages}

The seed was {seed}. `llm2comp.json` holds all settings and package versions. {weights}.
"""


def model_card(lineage: Lineage, dimension: int) -> str:
    """Return the card of an encoder, in Markdown.

    Args:
        lineage: with at least one stage.
        dimension: of an embedding.
    """
    last = lineage.stages[-1]
    to = lineage.compiled.to if lineage.compiled else None
    adapter = "`adapter/` holds\nthe adapter that the last stage trained, in PEFT's format"
    return TEMPLATE.format(
        backend=f', backend="{to}"' if to else "",
        weights=f"`{to}/` holds\nthe compiled weights" if to else adapter,
        name=lineage.name,
        count=len(lineage.stages),
        last=last.stage,
        backbone=lineage.backbone.name,
        objective=lineage.stages[0].objective,
        embedding=_embedding(lineage),
        attention=_attention(last),
        dimension=dimension,
        length=lineage.max_length,
        stages="\n".join(map(_row, lineage.stages)),
        seed=lineage.seed,
    )


def _attention(stage: StageRecord) -> str:
    if stage.causal:
        return "causal"
    if stage.attending == stage.layers:
        return "bidirectional"
    return (
        f"bidirectional in {stage.attending} of {stage.layers} layers; the others have no "
        "attention and stay causal"
    )


def _embedding(lineage: Lineage) -> str:
    if lineage.format.pooling == "text":
        return "the mean over the text's own tokens"
    k = lineage.memory.tokens
    return f"the mean over the outputs of the {k} memory tokens that follow every text"


def _row(stage: StageRecord) -> str:
    data = ", ".join(source.source for source in stage.data)
    size = f"{stage.steps:,} x {stage.batch_size:,}"
    objective = stage.objective or "contrastive"
    adapted, left_out = (
        ", ".join(f"`{name}`" for name in stage.lora.get(key) or [])
        for key in ("target_modules", "left_out")
    )
    cells = [stage.stage, objective, data, size, f"{stage.learning_rate:g}", adapted, left_out]
    return f"| {' | '.join(cells)} |"
