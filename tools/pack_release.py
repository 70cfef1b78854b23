"""Make a release of a run: ``python tools/pack_release.py RUN NAME``, as ``make release`` does."""

import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from llm2comp.model import released
from llm2comp.model.encoder import ADAPTER, copy_adapter
from llm2comp.model.lineage import Lineage
from llm2comp.recipe import STAGE_FOLDERS
from llm2comp.training.run_folder import MODEL, SCORES
from llm2comp.utils.files import atomic_folder


def pack(run: Path, target: Path) -> None:
    """Write the adapters of a run's stages in bfloat16, its lineage and its scores.

    Args:
        run: folder of the run.
        target: folder of the release.

    Raises:
        UserError: if the run has not finished.
    """
    lineage = Lineage.read(run / MODEL)
    base = lineage.backbone.name
    with atomic_folder(target) as partial:
        for record in lineage.stages:
            stage = STAGE_FOLDERS[record.stage]
            adapter = partial / stage
            copy_adapter(run / stage / ADAPTER, adapter, base)
            base = stage
            weights = adapter / "adapter_model.safetensors"
            tensors = load_file(weights)
            save_file({n: t.to(torch.bfloat16) for n, t in tensors.items()}, weights)
        # What `fetch` builds of rounded adapters gets a reference of its own.
        lineage.model_copy(update={"reference": None}).write(partial)
        if (run / SCORES).exists():
            shutil.copyfile(run / SCORES, partial / SCORES)


if __name__ == "__main__":
    pack(Path(sys.argv[1]), released.RELEASED / sys.argv[2])
