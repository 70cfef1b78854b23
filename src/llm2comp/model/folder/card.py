"""The model card of an encoder folder: what the encoder is, its training, and how to use it."""

from huggingface_hub import ModelCardData

from llm2comp.data import catalog
from llm2comp.data.sources import HUB_ID
from llm2comp.model.lineage import Lineage, StageRecord

HUB_NAMES = {
    "smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "minilm": "sentence-transformers/all-MiniLM-L6-v2",
}
"""Names on the hub of what is packaged."""

FOLDER = "path/to/this/folder"
"""What stands for the folder in the code of a card."""

TEMPLATE = """---
{metadata}
---
# {name}, after stage {count} ({last})

> Load this folder with {needs}.
> An embedding is {embedding}.
> {pooling}

A text encoder that llm2comp made from the causal language model `{backbone}`. Its pretext
objective was `{objective}`. Attention is {attention}. Embeddings have
{dimension} dimensions and unit length. Texts are truncated to {length} tokens. The method is
*Learning to Compress* (Zhang et al., AAAI-26, arXiv 2511.17129) or one that it is compared with
there.{bases}

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder"{options})
embeddings = model.encode(["The river rises in the mountains."])
```
{matryoshka}
This checks that a client computes the embeddings that were saved. Each number must be at least
{cosine}{where}:

```python
import json
{exactly}
reference = json.load(open("path/to/this/folder/llm2comp.json"))["reference"]
print((model.encode(reference["texts"]) * reference["embeddings"]).sum(axis=1))
```

{freezing}| stage | objective | data | steps x batch | peak learning rate | LoRA on | without LoRA |
|---|---|---|---|---|---|---|
{stages}

The seed was {seed}. The versions were {versions}.
{licences}
llm2comp wrote all settings into `llm2comp.json`{weights}. A copy that `save_pretrained` of
sentence-transformers writes has {lost}, and only later versions read it.
"""
TEMPLATE_OF_OTHERS = """---
{metadata}
---
# {name}, after {last}

A text encoder that llm2comp trained further from `{base}`. Its modules, its tokenizer and its
maximum length are those of `{base}`. Embeddings have {dimension} dimensions.{needs}

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder"{options})
embeddings = model.encode(["The river rises in the mountains."])
```
{matryoshka}{prompts}
| stage | objective | data | steps x batch | peak learning rate | LoRA on | without LoRA |
|---|---|---|---|---|---|---|
{stages}

The seed was {seed}. The versions were {versions}.
{licences}
llm2comp wrote all settings into `llm2comp.json`{weights}.
"""
"""For an encoder that began as one of others."""
SERVERS = (
    "The module `WordWeights` selects these tokens. Servers that have `Pooling` alone, such as "
    "vLLM,\n> text-embeddings-inference and llama.cpp, cannot compute it. txtai needs "
    '`method="sentence-transformers"`.'
)


LAST_TOKEN = (
    "This is pooling of the last token, so vLLM, text-embeddings-inference and llama.cpp serve the "
    "folder."
)
ROUNDED = """ in float32; the weights are in {dtype}, and clients compute in it
unless they are told otherwise"""
IN_FLOAT32 = """
model = SentenceTransformer("path/to/this/folder", model_kwargs={{"dtype": "float32"}}{options})
"""
"""For a folder in half precision."""
FREEZING = """\
Before you fine-tune the model with sentence-transformers, freeze its `WordWeights`. They would be
trained, and loading reads them from the settings, without what they learnt:

```python
model[1].requires_grad_(False)
```

"""


def model_card(lineage: Lineage, dimension: int, needed: dict[str, str]) -> str:
    """Return the card of an encoder, in Markdown.

    Args:
        lineage: with at least one stage.
        dimension: of an embedding.
        needed: the versions that a client needs, by package.
    """
    last = lineage.stages[-1]
    to = lineage.compiled.to if lineage.compiled else None
    parts = {
        "metadata": _metadata(lineage),
        "name": lineage.name,
        "last": last.stage,
        "dimension": dimension,
        "weights": "" if lineage.last_token else _weights(last, to),
        "stages": "\n".join(map(_row, lineage.stages)),
        "seed": lineage.seed,
        "versions": ", ".join(f"{name} {version}" for name, version in lineage.versions.items()),
        "licences": _licences(lineage),
        "matryoshka": _matryoshka(lineage, dimension) + _fewer_tokens(lineage),
    }
    options = f', backend="{to}"' if to else ""
    needs = " and ".join(f"{name} {bound}" for name, bound in needed.items())
    if lineage.backbone is None:
        return TEMPLATE_OF_OTHERS.format(
            **parts,
            base=lineage.bases[0].name,
            options=options,
            needs=f" Load this folder with {needs}." if needs else "",
            prompts=_prompts(lineage),
        )
    trust = ", trust_remote_code=True" if lineage.backbone.trust_remote_code else ""
    return TEMPLATE.format(
        **parts,
        options=options + trust,
        lost="no `llm2comp.json`" if to or lineage.last_token else "neither",
        needs=needs,
        pooling=LAST_TOKEN if lineage.last_token else SERVERS,
        freezing="" if lineage.last_token else FREEZING,
        cosine=1 - lineage.allowed_difference,
        where=ROUNDED.format(dtype=lineage.dtype) if lineage.dtype else "",
        exactly=IN_FLOAT32.format(options=trust) if lineage.dtype else "",
        count=len(lineage.stages),
        backbone=HUB_NAMES.get(lineage.backbone.name, lineage.backbone.name),
        bases="".join(
            f"\nThe run of stage {base.stages + 1} started from the encoder `{base.name}`."
            for base in lineage.bases
        ),
        objective=lineage.stages[0].objective,
        embedding=_embedding(lineage),
        attention=_attention(last),
        length=lineage.max_length,
    )


def _weights(last: StageRecord, to: str | None) -> str:
    """Return what the folder holds beside its settings."""
    if to:
        return f", and the compiled\nweights into `{to}/`"
    if last.lora is None:
        return ". The last stage trained all\nweights, so there is no adapter"
    return ", and the adapter of the\nlast stage, in PEFT's format, into `adapter/`"


def _matryoshka(lineage: Lineage, dimension: int) -> str:
    """Return which truncated embeddings were trained; empty if none was."""
    shorter = [dim for dim in sorted(lineage.matryoshka) if dim < dimension]
    if not shorter:
        return ""
    listed = ", ".join(map(str, shorter))
    return (
        f"\nThe first dimensions of an embedding are an embedding too; the last stage trained the\n"
        f"first {listed} beside the whole (Matryoshka):\n\n```python\n"
        f'texts = ["The river rises in the mountains."]\n'
        f"model.encode(texts, truncate_dim={shorter[-1]}, normalize_embeddings=True)\n```\n"
    )


def _fewer_tokens(lineage: Lineage) -> str:
    """Return which numbers of memory tokens were trained; empty if only all of them were."""
    counts = lineage.token_counts
    if len(counts) < 2 or lineage.last_token:
        return ""
    listed = ", ".join(map(str, reversed(counts[1:])))
    tokens = "memory token" if listed == "1" else "memory tokens"
    return (
        f"\nThe last stage trained the mean over the first {listed} {tokens} beside the mean "
        f"over all\n{counts[0]}. llm2comp loads it with fewer:\n\n```python\n"
        f'model = llm2comp.load("path/to/this/folder", memory_tokens={counts[-1]})\n```\n'
    )


def _prompts(lineage: Lineage) -> str:
    """Return the encoder's prompts; empty if it has none."""
    lines = [f"- `{name}`: `{prompt!r}`" for name, prompt in lineage.prompts.items() if prompt]
    if not lines:
        return ""
    return (
        "\nIt has these prompts. `encode_query` puts `query` before a text, and\n"
        "`encode_document` puts `document` before it:\n\n" + "\n".join(lines) + "\n"
    )


def _metadata(lineage: Lineage) -> str:
    """Return the metadata of the card, in YAML; what is not known is left out."""
    packaged = set(catalog.names())
    sources = _sources(lineage)
    bases = [] if lineage.backbone is None else [lineage.backbone.name]
    bases += [base.name for base in lineage.bases if base.revision or base.name in HUB_NAMES]
    named = [HUB_NAMES.get(name, name) for name in bases]
    hub = [name.partition(":")[0] for name in sources if HUB_ID.fullmatch(name)]
    return ModelCardData(
        base_model=next((name for name in reversed(named) if HUB_ID.fullmatch(name)), None),
        datasets=hub or None,
        # All packaged texts are English.
        language="en" if sources and packaged.issuperset(sources) else None,
        library_name="sentence-transformers",
        license=known_licence(lineage),
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "feature-extraction", "llm2comp"],
    ).to_yaml()


def known_licence(lineage: Lineage) -> str | None:
    """Return the licence of what an encoder began as, as the hub abbreviates it.

    Folders of older versions have none in their lineage. That of a packaged model is known.
    """
    began_as = lineage.backbone or lineage.bases[0]
    if lineage.licence is None and began_as.name in HUB_NAMES:
        return catalog.entry(began_as.name).licence.lower()
    return lineage.licence


def _sources(lineage: Lineage) -> list[str]:
    """Return the names of all data sources, in order."""
    return list(dict.fromkeys(data.source for stage in lineage.stages for data in stage.data))


def _licences(lineage: Lineage) -> str:
    """Return the licences of the packaged data sources, as a list."""
    entries = [catalog.entry(name) for name in _sources(lineage) if name in catalog.names()]
    if not entries:
        return ""
    lines = [f"- `{entry.name}`: {entry.licence}" for entry in entries]
    return "\nLicences of the data:\n\n" + "\n".join(lines) + "\n"


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
    if not lineage.num_memory_tokens:
        return "the mean over the text's own tokens"
    k = lineage.num_memory_tokens
    if k == 1:
        return "the output of the memory token that follows every text"
    return f"the mean over the outputs of the {k} memory tokens that follow every text"


def _row(stage: StageRecord) -> str:
    data = ", ".join(source.source for source in stage.data) or "-"
    kept = "" if stage.kept_step is None else f"{stage.kept_step:,} of "
    size = f"{kept}{stage.steps:,} x {stage.batch_size:,}"
    nested = f", Matryoshka {', '.join(map(str, stage.matryoshka))}" if stage.matryoshka else ""
    counts = stage.matryoshka_tokens
    nested += f", Matryoshka over {', '.join(map(str, counts))} memory tokens" if counts else ""
    objective = stage.objective or f"contrastive{nested}"
    adapted, left_out = (
        ", ".join(f"`{name}`" for name in (stage.lora or {}).get(key) or [])
        for key in ("target_modules", "left_out")
    )
    adapted = "none: all weights were trained" if stage.lora is None else adapted
    cells = [stage.stage, objective, data, size, f"{stage.learning_rate:g}", adapted, left_out]
    return f"| {' | '.join(cells)} |"
