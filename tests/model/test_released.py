"""The released model on real weights: its recorded scores, and memory that carries the text."""

import pytest
import torch
from sentence_transformers import SentenceTransformer

import llm2comp
from llm2comp import recipe
from llm2comp.data.passages import draw_passages
from llm2comp.evaluation import runner, suites
from llm2comp.model import released
from llm2comp.model.backbone import load_backbone
from llm2comp.model.compressor import Compressor
from llm2comp.model.lineage import Lineage
from llm2comp.model.memory_tokens import add_memory_tokens
from llm2comp.training import run_folder
from llm2comp.training.monitoring import held_out
from llm2comp.training.objectives.distillation import Distillation
from llm2comp.training.pretext import Collator
from llm2comp.utils.hardware import compute_dtype

pytestmark = pytest.mark.slow
NAME = "smollm2-135m-llm2comp"


def test_memory_of_the_released_stage_1_carries_its_text() -> None:
    """On passages held out of training, compared with other memory, zeros and no training."""
    lineage = Lineage.read(released.RELEASED / NAME)
    trained = lineage.stages[0]
    settings = trained.model_dump(include=set(recipe.Pretext.model_fields))
    settings["lora"].pop("left_out", None)
    stage = recipe.Pretext.model_validate(settings)
    memory = lineage.memory
    dtype = compute_dtype("auto")
    model, tokenizer = load_backbone("smollm2-135m", dtype=dtype, bidirectional=False)
    ids = torch.tensor([[1, 504, 3575, 282]])
    with torch.no_grad():
        original = model(ids).logits[0].float()
    tokenizer = add_memory_tokens(
        model, tokenizer, memory, lineage.seed, add_bos=lineage.backbone.add_bos
    )
    held = list(draw_passages(stage.data, tokenizer, stage.passages, count=16, seed=lineage.seed))
    compressor = Compressor(
        model,
        memory.tokens,
        stage.lora,
        bos_id=tokenizer.bos_token_id,
        causal=trained.causal,
        scale=memory.scale,
    )
    collator = Collator(compressor.memory_ids, compressor.bos_id, tokenizer.pad_token_id)
    batches = [collator.batch(*held_out.cut(held))]
    objective = Distillation()

    def measure() -> held_out.HeldOut:
        # One context per call, because autocast caches the casts of weights until it ends.
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            return held_out.measure(compressor, objective, batches)

    untrained = measure()
    compressor.load_adapter(released.adapter_of(f"{NAME}/1-pretext"))
    trained_memory = measure()
    assert trained_memory.gap > 0.8
    assert trained_memory.matched < untrained.matched / 2
    assert trained_memory.zeroed > trained_memory.matched + 0.5
    targets = torch.ones_like(ids, dtype=torch.bool)
    assert torch.equal(compressor.logits(compressor.teacher_states(ids, targets)), original)


def test_the_released_model_scores_what_is_recorded() -> None:
    model = SentenceTransformer(str(llm2comp.fetch(NAME)), device="cpu")
    recorded = run_folder.read_scores(released.RELEASED / NAME)["after SCL"]
    expected = next(score.main_score for score in recorded if score.task == "STS17")
    (score,) = runner.evaluate(model, NAME, suites.tasks(["STS17"]))
    assert score.main_score == pytest.approx(expected, abs=0.3)  # recorded in bfloat16


def test_the_release_is_small() -> None:
    size = sum(file.stat().st_size for file in released.RELEASED.rglob("*") if file.is_file())
    assert size <= 30e6
