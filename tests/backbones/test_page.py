"""The page of families in the documentation is what the tests find.

`make test-backbones` writes it anew.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from families import FAMILIES
from tiny_model import ATTENTIONS, Family

from llm2comp.model.backbone import load_backbone
from llm2comp.model.causal_lm.parts import body_of
from llm2comp.model.causal_lm.probe import Attention, probe
from llm2comp.model.lora import add_adapter
from llm2comp.model.lora_targets import adapted_layers
from llm2comp.recipe_parts import Lora

PAGE = Path(__file__).parents[2] / "docs/reference/backbones.md"
WRITE = "LLM2COMP_WRITE_BACKBONES"
"""If this variable is set, the page is written instead of compared."""

HEAD = """# Families of backbones

llm2comp accepts a backbone for what it does and not for its name, so this list is not a limit.
These are the families that our tests take through all three stages, with tiny random models. The
tests load each folder with stock sentence-transformers in another process and compare the
embeddings. They also compare the teacher's logits with those of the original model, and the first
loss with a slow reference. [Use your own backbone](../guides/own-backbone.md) says what is required
of a model that is not listed.

- **Family**: `model_type` in the model's `config.json`.
- **Bidirectional**: with `attention: bidirectional`. In a hybrid it holds for the layers that
  attend (n of m in the tiny model). The others have a convolution or a state space, and stay
  causal.
- **LoRA by default**: the layers that are adapted if a recipe names none. The column after it has
  the other linear layers of the blocks, and the weights of experts.

| family | causal | bidirectional | LoRA by default | without LoRA | remarks |
|---|---|---|---|---|---|
"""
TAIL = """
`make test-backbones` runs the tests and writes this page.
"""


@pytest.mark.slow
def test_the_page_is_what_the_tests_find(backbone: Callable[[Family], Path]) -> None:
    page = HEAD + "".join(row(family, backbone) for family in FAMILIES) + TAIL
    if os.environ.get(WRITE):
        PAGE.write_text(page, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page, "run `make test-backbones`"


def row(family: Family, backbone: Callable[[Family], Path]) -> str:
    causal, bidirectional = (cell(family, attention, backbone) for attention in ATTENTIONS)
    targets, left_out = lora(family, backbone) if not family.refused else ("", "")
    cells = [f"`{family.model_type}`", causal, bidirectional, targets, left_out, remarks(family)]
    return f"| {' | '.join(cells)} |\n".replace("|  |", "| |").replace("|  |", "| |")


def cell(family: Family, attention: str, backbone: Callable[[Family], Path]) -> str:
    if family.refusal(attention):
        return f"refused: {family.refusal(attention)}"
    found = attention_of(family, attention, backbone)
    if attention == "causal" or found.attending == found.layers:
        return "works"
    return f"in {found.attending} of {found.layers} layers"


def attention_of(family: Family, attention: str, backbone: Callable[[Family], Path]) -> Attention:
    bidirectional = attention == "bidirectional"
    model, _ = load_backbone(str(backbone(family)), bidirectional=bidirectional)
    return probe(model, family.name, bidirectional=bidirectional)


def lora(family: Family, backbone: Callable[[Family], Path]) -> tuple[str, str]:
    model, _ = load_backbone(str(backbone(family)), bidirectional=False)
    adapted = adapted_layers(add_adapter(body_of(model), Lora(r=2), 0))
    return quoted(adapted.blocks), quoted(adapted.left_out)


def remarks(family: Family) -> str:
    return "; ".join(_remarks(family))


def _remarks(family: Family) -> Iterator[str]:
    if family.remark:
        yield family.remark
    if not family.refused and not family.attention_dropout:
        yield "no dropout of attention: UCL needs `lora.dropout` above 0"


def quoted(names: list[str] | dict[str, int]) -> str:
    return ", ".join(f"`{name}`" for name in names)
