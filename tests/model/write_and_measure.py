"""Print the most memory that merging and writing an encoder takes, as a share of its weights.

It is run in a process of its own: `python write_and_measure.py BACKBONE FOLDER DTYPE LAYERS`.
Mapped files do not count, because the system takes their pages back when it needs them.
"""

import sys
import threading
import time
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from llm2comp.model import encoder
from llm2comp.model.backbone import load_backbone
from llm2comp.model.lineage import Lineage, StageRecord
from llm2comp.model.lora import add_adapter
from llm2comp.model.memory_tokens import add_memory_tokens
from llm2comp.recipe import Recipe
from llm2comp.utils.hardware import (
    free_unused_memory,
    freed_memory_returned,
    retain_freed_memory,
)


def anonymous() -> int:
    """Return the bytes of this process that are in no file."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])


class Peak(threading.Thread):
    """Looks every few milliseconds how much memory the process takes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.begin = self.most = anonymous()
        self.start()

    def run(self) -> None:
        while True:
            self.most = max(self.most, anonymous())
            time.sleep(0.002)


def widened(tiny: Path, folder: Path, dtype: torch.dtype, layers: int) -> Path:
    """Write a random backbone of many layers with the tokenizer of a tiny one."""
    config = AutoConfig.from_pretrained(tiny)
    config.update({"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": layers})
    config.update({"num_attention_heads": 12, "num_key_value_heads": 12, "head_dim": 64})
    AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return folder


def make_adapter(recipe: Recipe, folder: Path) -> Path:
    model, tokenizer = load_backbone(recipe.backbone.name, bidirectional=False)
    add_memory_tokens(model, tokenizer, recipe.memory, 0)
    adapted = add_adapter(encoder.body_of(model), recipe.stages[0].lora, recipe.memory.tokens)
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def write(backbone: Path, folder: Path, dtype: torch.dtype) -> list[float]:
    """Write stage 1 from a backbone and stage 2 from stage 1, and return the two peaks."""
    stage = {"stage": "pretext", "data": [{"source": "texts"}], "steps": 1, "batch_size": 1}
    recipe = Recipe.model_validate(
        {
            "name": "large",
            "backbone": {"name": str(backbone)},
            "stages": [stage | {"learning_rate": 1e-3}],
        }
    )
    adapter = make_adapter(recipe, folder / "adapter")
    record = StageRecord.of(recipe.stages[0], causal=True, lora={})
    lineage = Lineage.start(recipe, "memory").after(record)
    first, second, peaks = folder / "1-pretext", folder / "2-unsupervised", []
    free_unused_memory()
    for stage_folder in (first, second):
        peak = Peak()
        with freed_memory_returned():
            if stage_folder == first:
                built = encoder.build(lineage, [adapter], dtype)
            else:
                kwargs = {"dtype": encoder.stored(dtype)}
                built = SentenceTransformer(str(first), device="cpu", model_kwargs=kwargs)
                encoder.merge(built, adapter, dtype)
                lineage = lineage.after(record)
            source = None if stage_folder == first else first
            encoder.save(built, stage_folder, adapter, lineage, source)
        weights = (stage_folder / "model.safetensors").stat().st_size
        peaks.append((peak.most - peak.begin) / weights)
        del built
        free_unused_memory()
    return peaks


if __name__ == "__main__":
    tiny, folder, name, layers = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    torch.set_num_threads(1)
    retain_freed_memory()  # as the command line does
    precision = getattr(torch, name)
    write(tiny, folder / "first", precision)  # loads all libraries
    large = widened(tiny, folder / "backbone", precision, int(layers))
    print(*write(large, folder / "second", precision))
