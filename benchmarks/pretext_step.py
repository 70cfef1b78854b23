"""A step of stage 1 by this package, and one written out in full.

The literal one keeps two models, one with LoRA and memory rows and one frozen, attends eagerly,
makes logits and softmax at every position of student and teacher, and pads to the longest of a
batch as it comes. Both train by CTKD on the same passages, splits, batches and precision, with
the same LoRA and optimiser. The released code is lighter than the literal one: its decoder attends
by sdpa, and it takes softmax at target positions alone. Freed memory is kept, as by the command
line, in ours alone. A variant runs in a process of its own, over its batches twice, of which the
second time counts; the loss of the first step, from the same weights, is shown for each.

    python benchmarks/pretext_step.py [--steps 8]
"""

import argparse
import random
from collections.abc import Callable

import torch
from harness import finish, in_processes, report, seconds
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer

from llm2comp import recipe
from llm2comp.data.length_batching import group_by_length
from llm2comp.data.passages import draw_passages
from llm2comp.model.backbone import backbone_folder, load_backbone
from llm2comp.model.causal_lm.parts import body_of
from llm2comp.model.compressor import Compressor
from llm2comp.model.lora import trainable_parameters
from llm2comp.model.lora_targets import target_modules
from llm2comp.model.memory_tokens import add_memory_tokens
from llm2comp.training.objectives.distillation import Distillation
from llm2comp.training.pretext import Collator
from llm2comp.training.trainer import compile_blocks
from llm2comp.utils.hardware import compute_dtype, retain_freed_memory

BACKBONE = "smollm2-135m"
K = 8
SHAPES = {
    "56 tokens, split at 40": (recipe.Passages(min_chars=300, max_tokens=56, crop=True), 8, 40),
    "paper: 1,000 characters to 512 tokens, random split": (recipe.Passages(), 8, None),
}
"""Passages, how many a batch, and where they are split."""
LORA = recipe.Lora(dropout=0.0)
VARIANTS = ("ours", "ours, compile: true", "literal")
ROUNDS = 2

Batch = list[tuple[list[int], int]]
"""Passages and their splits."""


class Literal:
    """Two models and everything in full."""

    def __init__(self, backbone: str, dtype: torch.dtype) -> None:
        encoder, tokenizer = load_backbone(backbone, dtype=dtype)
        self.decoder = load_backbone(backbone, dtype=dtype)[0]
        self.vocabulary = len(self.decoder.get_input_embeddings().weight)
        add_memory_tokens(encoder, tokenizer, recipe.Memory(tokens=K), seed=0, add_bos=True)
        self.bos, self.pad = tokenizer.bos_token_id, tokenizer.pad_token_id or 0
        for model in (encoder, self.decoder):
            model.set_attn_implementation("eager")
            model.requires_grad_(False)
        rows = list(range(self.vocabulary, self.vocabulary + K))
        config = LoraConfig(
            r=LORA.r,
            lora_alpha=LORA.alpha,
            target_modules=target_modules(body_of(encoder), LORA.target_modules),
            trainable_token_indices={"embed_tokens": rows},
        )
        self.encoder = get_peft_model(body_of(encoder), config)
        for parameter in trainable_parameters(self.encoder).values():
            parameter.data = parameter.data.float()
        self.memory_ids = rows

    def parameters(self) -> list[Tensor]:
        """Return what trains."""
        return list(trainable_parameters(self.encoder).values())

    def loss(self, batch: Batch) -> Tensor:
        """Return KL over continuations, mean over positions, then over samples."""
        bos = [] if self.bos is None else [self.bos]
        texts = [[*bos, *passage[:split], *self.memory_ids] for passage, split in batch]
        ids, mask = self.padded(texts)
        states = self.encoder(ids, attention_mask=mask).last_hidden_state
        memory = states[ids >= self.vocabulary].view(len(batch), K, -1)
        rest, rest_mask = self.padded([p[a:] for p, a in batch])
        embed = self.decoder.get_input_embeddings()
        first = embed(torch.tensor(bos).expand(len(batch), len(bos)))
        inputs = torch.cat([first, memory.to(first.dtype), embed(rest)], dim=1)
        before = torch.ones(len(batch), len(bos) + K, dtype=torch.long)
        student = self.decoder(
            inputs_embeds=inputs, attention_mask=torch.cat([before, rest_mask], dim=1)
        ).logits[:, len(bos) + K - 1 :]
        whole, whole_mask = self.padded([[*bos, *p] for p, _ in batch])
        with torch.no_grad():
            teacher = self.decoder(whole, attention_mask=whole_mask).logits
        aligned = torch.zeros_like(student)
        for row, (passage, split) in enumerate(batch):
            start, end = len(bos) + split - 1, len(bos) + len(passage)
            aligned[row, : end - start] = teacher[row, start:end]
        log_student = student.float().log_softmax(-1)
        log_teacher = aligned.float().log_softmax(-1)
        divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(-1)
        counted = torch.cat([torch.ones(len(batch), 1), rest_mask], dim=1)
        return ((divergence * counted).sum(1) / counted.sum(1)).mean()

    def padded(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Return ids and mask ``(batch, length)``."""
        ids = pad_sequence([torch.tensor(row) for row in rows], True, self.pad)
        lengths = torch.tensor([len(row) for row in rows])
        return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()


class Ours:
    """As stage 1 does."""

    def __init__(self, backbone: str, dtype: torch.dtype) -> None:
        model, tokenizer = load_backbone(backbone, dtype=dtype)
        tokenizer = add_memory_tokens(
            model, tokenizer, recipe.Memory(tokens=K), seed=0, add_bos=True
        )
        self.compressor = Compressor(model, K, LORA, bos_id=tokenizer.bos_token_id, causal=True)
        self.objective = Distillation()
        self.collator = Collator(
            self.compressor.memory_ids, self.compressor.bos_id, tokenizer.pad_token_id
        )

    def parameters(self) -> list[Tensor]:
        """Return what trains."""
        return list(trainable_parameters(self.compressor).values())

    def loss(self, batch: Batch) -> Tensor:
        """Return the objective's loss."""
        passages, splits = (list(part) for part in zip(*batch, strict=True))
        return self.objective.loss(self.compressor, self.collator.batch(passages, splits))


def main() -> None:
    """Measure both variants on both shapes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8, help="timed steps of a round")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--shape", choices=SHAPES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        measure(options.variant, options.shape, options.steps)
        return
    columns = ["passages", "variant", "passages/s", "peak (GB)", "loss", "speed", "memory"]
    rows = []
    for shape in SHAPES:
        arguments = ("--shape", shape, "--steps", str(options.steps))
        found = in_processes(__file__, VARIANTS, ROUNDS, *arguments)
        literal = found["literal"]
        for name, one in found.items():
            ratios = [one["rate"] / literal["rate"], one["peak_gb"] / literal["peak_gb"]]
            rows.append([shape, name, one["rate"], one["peak_gb"], one["loss"], *ratios])
    report("pretext_step", columns, rows)


def measure(variant: str, shape: str, steps: int) -> None:
    """Train some steps in this process and print what they took."""
    ours = variant != "literal"
    batches = draw(shape, steps, grouped=ours)
    dtype = compute_dtype("auto")
    if ours:  # as the command line does
        retain_freed_memory()
    model = (Ours if ours else Literal)(BACKBONE, dtype)
    if "compile" in variant:
        compile_blocks(model.compressor.body)
    step = trainer(model)
    first = step(draw(shape, 1, grouped=False)[0])
    # All batches: grouped or not, they are the same passages. Twice: the first time compiles.
    taken = [seconds(lambda: [step(batch) for batch in batches]) for _ in range(2)][-1]
    finish(rate=sum(map(len, batches)) / taken, loss=first)


def trainer(model: Ours | Literal) -> Callable[[Batch], float]:
    """Return what takes a step on a batch, and gives its loss."""
    dtype = compute_dtype("auto")
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step(batch: Batch) -> float:
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            loss = model.loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        return loss.item()

    return step


def draw(shape: str, count: int, *, grouped: bool) -> list[Batch]:
    """Draw batches: grouped by length as stage 1 does, or as passages come."""
    rule, size, split = SHAPES[shape]
    tokenizer = AutoTokenizer.from_pretrained(backbone_folder(BACKBONE))
    source = recipe.DataSource(source="boolq-passages")
    passages = list(draw_passages([source], tokenizer, rule, count * size, seed=0))
    generator = random.Random(0)
    cut = [(p, split or generator.randint(10, len(p) - 10)) for p in passages]
    if not grouped:
        return [cut[i : i + size] for i in range(0, len(cut), size)]
    return [[cut[i] for i in batch] for batch in group_by_length([len(p) for p, _ in cut], size)]


if __name__ == "__main__":
    main()
