"""Held-out passages: those of a source that stage 1 was not trained on."""

from typing import Any

from llm2comp.data.passages import draw_passages
from llm2comp.data.sample import draw
from llm2comp.errors import UserError, counted
from llm2comp.inference.reading.reader import Reader
from llm2comp.model.folder.names import base_name, is_local
from llm2comp.recipe_parts import Passages

CANDIDATES = 100_000
"""Texts among which passages are looked for; they are in memory at once."""
START = 16
"""Two passages that begin with the same tokens, as many as this, count as the same."""


def draw_held_out(
    reader: Reader, data: str, tokens: int, count: int, seed: int
) -> tuple[list[list[int]], list[str]]:
    """Draw passages that stage 1 was not trained on.

    Args:
        reader: the encoder.
        data: packaged source, local file or hub data set, with texts.
        tokens: of a passage; shorter texts are left out.
        count: how many to draw.
        seed: the same seed gives the same passages.

    Returns:
        The first `tokens` token ids of each, and what to know of them.

    Raises:
        UserError: if there are too few.
    """
    known, notes = _trained_starts(reader, data)
    sample = draw(data, CANDIDATES, seed)
    drawn: list[list[int]] = []
    for text in sample.texts:
        (ids,) = reader.tokens([text])
        start = tuple(ids[:START])
        if len(ids) >= tokens and start not in known:
            known.add(start)
            drawn.append(ids[:tokens])
            if len(drawn) == count:
                return drawn, notes
    have = "has" if len(drawn) == 1 else "have"
    raise UserError(
        f"{data}: {counted(len(drawn), 'text')} that stage 1 was not trained on {have} "
        f"{counted(tokens, 'token')} or more, and {count} are asked for; give fewer passages, "
        "shorter lengths or other data"
    )


def _trained_starts(reader: Reader, data: str) -> tuple[set[tuple[int, ...]], list[str]]:
    """Return the first tokens of each passage of stage 1, if it was trained on these data.

    The passages are drawn again as the lineage says. The order of a local file depends on its path,
    which is not recorded, so its passages are known only if all of them were used.

    Returns:
        The first tokens, and a note if the passages cannot be drawn again.
    """
    stage = reader.lineage.stages[0]
    if base_name(data) not in [base_name(source.source) for source in stage.data]:
        return set(), []
    recorded: dict[str, Any] = stage.model_extra or {}
    seed = next((base.seed for base in reader.lineage.bases), reader.lineage.seed)
    try:
        limits = Passages.model_validate(recorded["passages"])
        count = stage.steps * stage.batch_size + recorded["eval_passages"]
        drawn = draw_passages(
            stage.data, reader.encoder.tokenizer, limits, count, int(seed or 0), "skip"
        )
        passages = list(drawn)
    except (UserError, KeyError) as error:
        return set(), [
            f"{data} is what stage 1 was trained on, and its passages cannot be drawn again "
            f"({error}); some of these may be among them"
        ]
    if is_local(data) and len(passages) == count:
        return set(), [
            f"{data} is what stage 1 was trained on, and which passages it took is not recorded; "
            "some of these may be among them"
        ]
    return {tuple(ids[:START]) for ids in passages}, []
