"""Memory stays readable: beside a contrastive loss, the objective of stage 1 goes on.

A passage that is found by its embedding can then be handed to the language model as k tokens
(xRAG, arXiv 2405.13792, trains a projection for that; here memory itself is read).
"""

from collections.abc import Iterable

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from llm2comp.errors import UserError
from llm2comp.inference.reading.answering import TOKENS, answers, asked
from llm2comp.inference.reading.backbone import require_backbone, require_readable
from llm2comp.inference.reading.reader import Reader
from llm2comp.model.causal_lm.parts import token_table
from llm2comp.model.compressor import Decoder
from llm2comp.model.lineage import Lineage
from llm2comp.recipe import Contrastive, Recipe, Supervised
from llm2comp.training.losses.matryoshka import Losses
from llm2comp.training.monitoring.progress import READING
from llm2comp.training.objectives.batch import Batch
from llm2comp.training.objectives.objective import Compression
from llm2comp.training.objectives.registry import OBJECTIVES
from llm2comp.training.stage_context import StageContext
from llm2comp.utils.hardware import compute_dtype

FEWEST = 24
"""Tokens of the shortest passage that is read."""
KEY = "supervised.reading"
REMEDY = "put the folder of that backbone into the present one, or leave the key out"
"""What to do if the backbone of a base is not found, or is another one."""
CONTRASTIVE = "contrastive"
"""Name of the other part of the loss."""

Features = dict[str, Tensor]


class ReadMemory(nn.Module):
    """What the frozen language model makes of memory, judged by the objective of stage 1.

    After the memory of a passage comes the query as a question, and the answer that the model
    itself gives after the text of the passage. With `distillation`, the model is to say of all of
    it what it says given the text (self-distillation, as in xRAG). No answers are needed as data.

    Args:
        reader: the encoder that trains and the frozen model, which is no part of what trains.
        objective: judges what the model does with memory.
        passages: the most passages of a batch.
    """

    def __init__(self, reader: Reader, objective: Compression, passages: int) -> None:
        super().__init__()
        self.reader = reader  # no module, so that the Trainer neither moves nor saves it
        self.objective = objective
        self.passages = passages
        template = list(reader.encoder.tokenizer("")["input_ids"])
        self.first, self.memory = template[: -reader.k], template[-reader.k :]
        self.decoder = [
            Decoder(
                reader.model,
                token_table(reader.model).num_embeddings,
                bos_id=self.first[0] if self.first else None,
                scale="none" if reader.token_norm is None else "embeddings",
            )
        ]

    def forward(self, queries: Features, texts: Features) -> Tensor:
        """Return the loss of the first passages of a batch that are long enough.

        Args:
            queries: `input_ids` and `attention_mask` `(rows, length)`, as the encoder reads them.
            texts: the passage of each.

        Returns:
            A scalar in nats per token; 0 without a gradient if all passages are too short.
        """
        pairs = zip(self.words(queries), self.words(texts), strict=True)
        chosen = [pair for pair in pairs if len(pair[1]) >= FEWEST][: self.passages]
        if not chosen:
            return texts["input_ids"].new_zeros((), dtype=torch.float32)
        questions, passages = map(list, zip(*chosen, strict=True))
        dtype = self.reader.model.dtype
        # The Trainer has it only around a call of the whole encoder.
        with torch.autocast(self.reader.model.device.type, dtype, dtype == torch.bfloat16):
            return self.loss(passages, self.dialogues(questions, passages))

    def words(self, texts: Features) -> list[list[int]]:
        """Return token ids of texts without special tokens."""
        rows = zip(texts["input_ids"], texts["attention_mask"].bool(), strict=True)
        ids = [row[mask].tolist() for row, mask in rows]
        return [row[len(self.first) : -len(self.memory)] for row in ids]

    def dialogues(self, questions: list[list[int]], passages: list[list[int]]) -> list[list[int]]:
        """Return the token ids of each question, and of the model's answer given the passage."""
        reader = self.reader
        prompts = asked(reader, [reader.decode(question) for question in questions])
        prefixes = [
            reader.prefix(reader.embed(passage), reader.embed(prompt))
            for passage, prompt in zip(passages, prompts, strict=True)
        ]
        said = answers(reader, prefixes, TOKENS)
        return [[*prompt, *answer] for prompt, answer in zip(prompts, said, strict=True)]

    def loss(self, passages: list[list[int]], dialogues: list[list[int]]) -> Tensor:
        """Return the loss of dialogues given the memory of passages, all as token ids."""
        (decoder,) = self.decoder
        batch = Batch.of(
            [[*passage, *after] for passage, after in zip(passages, dialogues, strict=True)],
            [len(passage) for passage in passages],
            memory_ids=self.memory,
            bos_id=decoder.bos_id,
            pad_id=self.reader.encoder.tokenizer.pad_token_id,
        ).to(self.reader.model.device)
        memory = decoder.as_input(self.reader.memory(batch.input_ids, batch.attention_mask))
        return self.objective.loss_from_memory(decoder, memory, batch)


class WithReading(nn.Module):
    """A loss, and the loss of reading memory at a weight.

    Args:
        loss: of pairs or triples, or of scored pairs.
        reading: the other one.
        weight: what it is multiplied by.
    """

    def __init__(self, loss: nn.Module, reading: ReadMemory, weight: float) -> None:
        super().__init__()
        self.loss = loss
        self.reading = reading
        self.weight = weight

    def forward(self, features: Iterable[Features], labels: Tensor | None) -> dict[str, Tensor]:
        """Return both, which the Trainer adds.

        Args:
            features: of each column: anchors, positives and maybe negatives.
            labels: scores of the pairs, if they have any.
        """
        columns = list(features)
        # Before the other loss, which may change the features.
        reading = self.reading(*columns[:2])
        return {CONTRASTIVE: self.loss(columns, labels), READING: self.weight * reading}


def with_reading(
    context: StageContext[Contrastive], model: SentenceTransformer, losses: Losses
) -> Losses:
    """Return the losses of a stage, each with that of reading memory if the stage asks for it.

    Args:
        context: the stage. Its lineage names the backbone and the objective of stage 1.
        model: the encoder that trains.
        losses: its losses.

    Raises:
        UserError: if the backbone cannot be had, or is another one.
    """
    stage, lineage = context.stage, context.lineage
    if not isinstance(stage, Supervised) or stage.reading is None:
        return losses
    objective = OBJECTIVES[str(lineage.stages[0].objective)]()
    assert isinstance(objective, Compression)
    reading = ReadMemory(_reader(context, model), objective, stage.reading.passages)
    weight = stage.reading.weight
    if not isinstance(losses, dict):
        return WithReading(losses, reading, weight)
    return {name: WithReading(loss, reading, weight) for name, loss in losses.items()}


def _reader(context: StageContext[Contrastive], model: SentenceTransformer) -> Reader:
    """Load the frozen backbone, and put it beside the encoder that trains.

    Raises:
        UserError: as `with_reading`.
    """
    recipe, lineage = context.recipe, context.lineage
    # A folder keeps only the last part of a local path.
    local = None if recipe.base is not None else recipe.backbone.name
    name, dtype = str(recipe.base or recipe.name), compute_dtype(recipe.backbone.dtype)
    code = recipe.backbone.trust_remote_code
    try:
        return Reader.beside(model, name, lineage, dtype, local, REMEDY, trust_remote_code=code)
    except UserError as error:
        raise UserError(f"recipe {recipe.name}: {KEY}: {error}") from error


def require_memory(recipe: Recipe, lineage: Lineage) -> None:
    """Check that memory can be read if a stage trains it to be, before anything is trained.

    Args:
        recipe: the recipe.
        lineage: of the encoder that a stage starts from or, before stage 1, that it makes.

    Raises:
        UserError: if it cannot.
    """
    stages = [stage for stage in recipe.stages if isinstance(stage, Supervised)]
    if all(stage.reading is None for stage in stages):
        return
    if recipe.backbone.load_in_4bit:
        raise UserError(
            f"{KEY} is not trained on weights in 4 bits; leave it out, or backbone.load_in_4bit"
        )
    name = str(recipe.base or recipe.name)
    try:
        require_readable(name, lineage)
        if recipe.base is not None and lineage.backbone is not None:
            require_backbone(name, lineage.backbone, REMEDY)
    except UserError as error:
        raise UserError(f"{KEY}: {error}") from error
