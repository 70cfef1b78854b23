"""What the stages of a recipe read: how many rows, how long, what is left out, and the first ones.

Stage 3 is drawn as a run draws it. Of the other stages each source is drawn by itself, for its
share of the rows.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from llm2comp.data.crops import Crops
from llm2comp.data.drawn.left_out import REASONS, LeftOut
from llm2comp.data.drawn.pair_file import POSITIVES, texts_of
from llm2comp.data.drawn.rows import drawn_once
from llm2comp.data.pairs import module_name, row_prompts, write_pairs
from llm2comp.data.passages import draw_passages
from llm2comp.data.sentences import draw_sentences
from llm2comp.data.sources import SCORE
from llm2comp.errors import UserError, counted
from llm2comp.model.backbone import backbone_folder
from llm2comp.model.base import open_base, transformer_folder
from llm2comp.model.lineage import Lineage
from llm2comp.model.loading.checkpoint import read_config, read_tokenizer
from llm2comp.model.loading.tokenizer import load_tokenizer
from llm2comp.model.memory_tokens import extended_tokenizer
from llm2comp.recipe import Pretext, Recipe, Stage, Supervised, Unsupervised
from llm2comp.recipe_parts import DataSource, dataset_names
from llm2comp.training.contrastive import (
    as_modules,
    prompts_by_column,
    prompts_in_training,
)
from llm2comp.training.pretext import objective_of
from llm2comp.utils.tables import Cells

EXAMPLES = 2
"""Rows that are shown of each source."""
MEASURED = 10_000
"""The most rows of a source whose tokens are counted."""
BEGINNING, END = 24, 10
"""Tokens that are shown of a longer text."""
BETWEEN = "·"
"""Stands between two tokens."""
LINE_BREAK = "⏎"

Texts = dict[str, list[str]]
"""The texts of a row by column."""


@dataclass(frozen=True)
class Preview:
    """What a stage reads from one source.

    Attributes:
        stage: the name of the stage.
        source: the name of the source, and `#2` for its second use.
        rows: how many rows are drawn.
        left_out: how many were left out, by the reasons of `llm2comp.data.drawn.left_out`.
        lengths: by column, the tokens of its texts as the model reads them.
        cut: by column, how many of its texts have more tokens than the stage reads.
        examples: by column, the texts of the first rows as the model reads them.
    """

    stage: str
    source: str
    rows: int
    left_out: dict[str, int]
    lengths: dict[str, list[int]]
    cut: dict[str, int]
    examples: list[Texts]


def previews(recipe: Recipe) -> Iterator[Preview]:
    """Yield what each stage reads from each of its sources.

    Raises:
        UserError: if a source, the backbone or the base cannot be read.
    """
    tokenizer, lineage = _reader(recipe)
    for stage in recipe.stages:
        if not stage.steps:
            continue
        if isinstance(stage, Supervised):
            yield from _pairs(recipe, stage, tokenizer, lineage)
            continue
        weights = sum(source.weight for source in stage.data)
        for source in stage.data:
            count = round(stage.steps * stage.batch_size * source.weight / weights)
            yield _texts(recipe, stage, source, max(count, 1), tokenizer)


def table(found: Iterable[Preview]) -> Cells:
    """Return a table with a row for each column of each source."""
    cells = [["source", "stage", "rows", "column", "median", "95 %", "longest", "cut", "left out"]]
    for one in found:
        left_out = ", ".join(counted(n, *REASONS[reason]) for reason, n in one.left_out.items())
        for place, (column, lengths) in enumerate(one.lengths.items()):
            first = place == 0
            tokens = np.quantile(lengths, [0.5, 0.95, 1.0], method="inverted_cdf").tolist()
            cells.append(
                [
                    one.source if first else "",
                    one.stage if first else "",
                    f"{one.rows:,}" if first else "",
                    column,
                    *(f"{number:,}" for number in tokens),
                    f"{one.cut[column]:,}",
                    left_out if first else "",
                ]
            )
    return cells


def _reader(recipe: Recipe) -> tuple[PreTrainedTokenizerBase, Lineage | None]:
    """Return the tokenizer of the encoder, and the lineage of the base if there is one."""
    backbone, first = recipe.backbone, recipe.stages[0]
    options = {"trust_remote_code": backbone.trust_remote_code}
    if recipe.base is not None:
        base = open_base(recipe)
        return load_tokenizer(transformer_folder(base.folder), **options), base.lineage
    if not isinstance(first, Pretext):
        raise UserError(
            f"recipe {recipe.name}: {first.stage} needs an encoder; set base, or put pretext "
            "before it"
        )
    form = objective_of(first).format()
    folder = backbone_folder(backbone.name, backbone.revision, code=backbone.trust_remote_code)
    rows = read_config(folder, backbone.name, **options).get_text_config().vocab_size
    tokenizer = read_tokenizer(folder, backbone.name, **options)
    k = recipe.memory.tokens
    return extended_tokenizer(tokenizer, form, k, rows, backbone.add_bos), None


def _pairs(
    recipe: Recipe, stage: Supervised, tokenizer: PreTrainedTokenizerBase, lineage: Lineage | None
) -> Iterator[Preview]:
    """Draw the rows of stage 3 into a temporary folder, and yield what each source gave."""
    seed, on_bad_row = recipe.seed, recipe.on_bad_row
    draw = partial(write_pairs, stage=stage, seed=seed, on_bad_row=on_bad_row)
    with tempfile.TemporaryDirectory() as folder:
        rows = drawn_once(Path(folder), stage, seed, on_bad_row, draw)
        prompts = {} if lineage is None else prompts_in_training(recipe, stage, lineage)
        own = row_prompts(stage.data, rows.summary)
        by_column = prompts_by_column(prompts, stage, as_modules(rows.train), own)
        for name, source in zip(dataset_names(stage.data), stage.data, strict=True):
            part = rows.train[name]
            reader = _Reader(tokenizer, stage.max_length, by_column.get(module_name(name), {}))
            counts = _of_source(source.source, rows.summary)
            yield reader.preview(stage, name, len(part), counts, map(_columns, part))


def _texts(
    recipe: Recipe,
    stage: Pretext | Unsupervised,
    source: DataSource,
    count: int,
    tokenizer: PreTrainedTokenizerBase,
) -> Preview:
    """Draw the texts of a source."""
    left_out, seed, on_bad_row = LeftOut(), recipe.seed, recipe.on_bad_row
    if isinstance(stage, Pretext):
        limits = drawn = stage.passages
        if limits.crop:  # a token more than is read shows that a passage is cut
            drawn = limits.model_copy(update={"max_tokens": limits.max_tokens + 1})
        ids = draw_passages([source], tokenizer, drawn, count, seed, on_bad_row, left_out)
        rows: list[Texts] = [{"text": [str(tokenizer.decode(one))]} for one in ids]
        reader = _Reader(tokenizer, limits.max_tokens, {})
    else:
        crops = Crops(seed) if stage.views == "crop" else None
        texts = draw_sentences([source], count, seed, on_bad_row, left_out, crops)
        views = (crops.two(text) if crops else (text,) for text in texts)
        names = ("first view", "second view") if crops else ("text",)
        rows = [{n: [t] for n, t in zip(names, view, strict=True)} for view in views]
        reader = _Reader(tokenizer, stage.max_length, {})
        if crops is not None:
            left_out.count("too_short", source.source, crops.too_short)
    counts = _of_source(source.source, left_out.counts)
    return reader.preview(stage, source.source, len(rows), counts, rows)


def _of_source(name: str, counts: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Return what was left out of a source, by reason."""
    return {reason: counts[reason][name] for reason in REASONS if name in counts.get(reason, {})}


def _columns(row: Mapping[str, Any]) -> Texts:
    """Return the texts of a row of stage 3; a score is a text too."""
    shown = {name: value for name, value in row.items() if name not in (POSITIVES, SCORE)}
    return {name: texts_of(value) for name, value in shown.items()}


@dataclass(frozen=True)
class _Reader:
    """Reads texts as the encoder does in a stage.

    Attributes:
        tokenizer: of the encoder.
        max_length: the most tokens of a text, without what is put around it.
        prompts: what is put before the texts of a column.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    prompts: Mapping[str, str]

    def preview(
        self, stage: Stage, name: str, rows: int, left_out: dict[str, int], texts: Iterable[Texts]
    ) -> Preview:
        """Return what a stage reads from a source, of which these are the texts."""
        lengths: dict[str, list[int]] = {}
        cut: dict[str, int] = {}
        examples: list[Texts] = []
        for number, row in enumerate(islice(texts, MEASURED)):
            shown: Texts = {}
            for column, values in row.items():
                read = self.read(column, values)
                lengths.setdefault(column, []).extend(len(one.ids) for one in read)
                cut[column] = cut.get(column, 0) + sum(bool(one.overflowing) for one in read)
                shown[column] = list(map(self.show, read))
            if number < EXAMPLES:
                examples.append(shown)
        return Preview(stage.stage, name, rows, left_out, lengths, cut, examples)

    @property
    def longest(self) -> int:
        """The most tokens that are read."""
        return self.max_length + self.tokenizer.num_special_tokens_to_add()

    def read(self, column: str, texts: Sequence[str]) -> list[Encoding]:
        """Return the tokens of the texts of a column, with all that is put around them."""
        if not texts:
            return []
        prompt = self.prompts.get(column, "")
        whole = [f"{prompt}{text}" for text in texts]
        read = self.tokenizer(whole, truncation=True, max_length=self.longest)
        encodings: list[Encoding] = read.encodings
        return encodings

    def show(self, read: Encoding) -> str:
        """Return tokens as text, the middle of a long text left out."""
        pieces = [
            # Memory tokens are in no vocabulary, so they cannot be decoded.
            name if special else str(self.tokenizer.decode([one])).replace("\n", LINE_BREAK)
            for one, name, special in zip(
                read.ids, read.tokens, read.special_tokens_mask, strict=True
            )
        ]
        hidden = len(pieces) - BEGINNING - END
        if hidden > 1:
            pieces[BEGINNING:-END] = [f" … {hidden} more … "]
        return BETWEEN.join(pieces)
