"""The part of the Python API that looks into encoders: their vectors, and their memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llm2comp.utils.files import user_path

if TYPE_CHECKING:
    from llm2comp.analysis.measure import Analysis
    from llm2comp.analysis.reading.answers import Answers
    from llm2comp.analysis.reading.capacity import Capacity
    from llm2comp.analysis.reading.texts import Reading
    from llm2comp.inference.reading.going_on import Memory
    from llm2comp.utils.choices import Precision


def analyze(
    models: Sequence[str | Path], out: str | Path, *,
    data: str = "boolq-pairs", texts: int = 1000, seed: int = 0, batch_size: int = 32,
    dtype: Precision = "auto", merge_threshold: float | None = None,
) -> list[Analysis]:  # fmt: skip
    """Measure how many directions the embeddings use, and how alike the memory tokens are.

    An analysis has the spectrum, effective dimensions, alignment, uniformity, hubness and, if there
    are memory tokens, their redundancy.

    Args:
        models: names or folders that `load` takes, or `.npy` files of embeddings.
        out: folder for one JSON file per encoder and two figures, `spectrum` and `memory`.
        data: packaged source, local file or hub dataset, with a column `text`, or with `anchor`
            and `positive`.
        texts: number of texts or pairs to draw from it.
        seed: seed of the random draw.
        batch_size: as in `encode`.
        dtype: as in `load`.
        merge_threshold: as in `load`.

    Raises:
        UserError: if a model or the data is not available, or matplotlib is not installed.

    Examples:
        >>> (analysis,) = llm2comp.analyze(["smollm2-135m-llm2comp"], "out", data="texts.txt")
        >>> analysis.spectrum.rankme > 1
        True
    """
    from llm2comp.analysis.analyze import analyze as analyze_all

    return analyze_all(
        models, user_path(out), data, texts, seed, batch_size, dtype, merge_threshold
    )


def report(
    models: Sequence[str | Path], out: str | Path, *,
    data: str = "boolq-passages", texts: int = 300, queries: Sequence[str] = (), seed: int = 0,
    batch_size: int = 32, dtype: Precision = "auto", capacity: str | Path | None = None,
) -> Path:  # fmt: skip
    """Write one HTML file about a run, or about several encoders side by side, and return `out`.

    Args:
        models: one run folder, or encoders that `load` takes.
        out: the HTML file. It needs no network.
        data: source of the texts for the map and the searches, as in `analyze`.
        texts: number of texts to draw from it.
        queries: queries to search for; three examples if none is given.
        seed: seed of the random draw.
        batch_size: as in `encode`.
        dtype: as in `load`.
        capacity: folder that `capacity` wrote; its curves become a section of the page.

    Raises:
        UserError: if a model or the data is not available, or plotly is not installed.

    Examples:
        >>> page = llm2comp.report(["smollm2-135m-llm2comp"], "report.html", data="texts.txt")
        >>> page.name
        'report.html'
    """
    from llm2comp.analysis.report.write import report as write_report

    folder = None if capacity is None else user_path(capacity)
    return write_report(
        models, user_path(out), data, texts, queries, seed, batch_size, dtype, folder
    )


def memory(
    model: str | Path, texts: Sequence[str], *, backbone: str | Path | None = None,
    dtype: Precision = "auto",
) -> Memory:  # fmt: skip
    """Compress texts into memory that a language model reads, see `generate`.

    Args:
        model: encoder folder, released name or hub id. Its stage 1 must compress, and memory is
            read best after stage 1 alone.
        texts: texts of any length. A text is cut to the maximum length of the encoder.
        backbone: the language model, where the folder names one that is not on this machine;
            `None` is the one that it names.
        dtype: as in `load`; the language model gets the same.

    Returns:
        The `vectors` of the texts, `(texts, k, hidden)`, and the `reader`, which holds the encoder
        and the language model. `reader` can be used for further texts.

    Raises:
        UserError: if the encoder has no memory that a language model can read, or its backbone
            cannot be had.

    Examples:
        >>> memory = llm2comp.memory("smollm2-135m-llm2comp/1-pretext", ["Whales are mammals."])
        >>> len(memory.vectors)
        1
    """
    from llm2comp.inference.reading.going_on import Memory
    from llm2comp.inference.reading.reader import Reader

    return Memory.of(Reader.open(str(model), dtype, backbone), texts)


def generate(
    memory: Memory, prompt: str = "", *, max_new_tokens: int = 64, temperature: float = 0.0,
    top_p: float = 1.0, seed: int = 0,
) -> list[str]:  # fmt: skip
    """Let the frozen language model go on from the memory of each text.

    It reads `BOS memory prompt`, and never the text.

    Args:
        memory: what `memory` returns.
        prompt: text after the memory.
        max_new_tokens: the most tokens of an answer.
        temperature: 0 takes the likeliest token each time; above 0, tokens are drawn.
        top_p: draw from the likeliest tokens whose probabilities sum to this.
        seed: of the draws.

    Raises:
        UserError: if a number is out of its range.

    Examples:
        >>> memory = llm2comp.memory("smollm2-135m-llm2comp/1-pretext", ["Whales are mammals."])
        >>> len(llm2comp.generate(memory, " They", max_new_tokens=8))
        1
    """
    from llm2comp.inference.reading.going_on import Sampling

    return memory.go_on(prompt, Sampling(max_new_tokens, temperature, top_p, seed))


def read(
    model: str | Path, text: str | Path | Sequence[str], *, prompt: str = "",
    max_new_tokens: int = 64, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0,
    backbone: str | Path | None = None, dtype: Precision = "auto",
) -> Reading:  # fmt: skip
    """Read the memory of texts again, and measure what it holds.

    Args:
        model: as in `memory`.
        text: a text, a file of texts as `encode_file` takes it, or a list of texts.
        prompt: text after the memory, and after the full text.
        max_new_tokens: the most tokens that the language model says of each; 0 only measures.
        temperature: as in `generate`.
        top_p: as in `generate`.
        seed: as in `generate`.
        backbone: as in `memory`.
        dtype: as in `memory`.

    Returns:
        For each text, what the language model `said` after its memory and after the text itself,
        and the `losses` of its last quarter, given memory of what is before, the full text, its
        last k tokens, nothing, and three controls. If stage 1 trained memory to give the text
        again, the losses are those of the whole text.

    Raises:
        UserError: if the file cannot be read, a text has fewer than two tokens, a number is out of
            its range, or for the reasons of `memory`.

    Examples:
        >>> text = "Whales are mammals: they breathe air and feed their young with milk."
        >>> reading = llm2comp.read("smollm2-135m-llm2comp/1-pretext", text, max_new_tokens=8)
        >>> sorted(reading.texts[0].said)
        ['full', 'memory']
        >>> reading.loss("memory") > 0
        True
    """
    from llm2comp.analysis.reading.texts import given_texts
    from llm2comp.analysis.reading.texts import read as read_texts
    from llm2comp.inference.reading.going_on import Sampling
    from llm2comp.inference.reading.reader import Reader

    sampling = Sampling(max_new_tokens, temperature, top_p, seed) if max_new_tokens else None
    texts = given_texts(text)  # before a model is loaded
    return read_texts(Reader.open(str(model), dtype, backbone), texts, prompt, sampling)


def capacity(
    models: str | Path | Sequence[str | Path], out: str | Path | None = None, *,
    data: str = "news-passages", lengths: Sequence[int] = (), k: Sequence[int] = (),
    passages: int = 32, seed: int = 0, backbone: str | Path | None = None,
    dtype: Precision = "auto",
) -> list[Capacity]:  # fmt: skip
    """Measure how much the memory of encoders holds, over the length of a text and over k.

    Args:
        models: as `model` in `memory`, one or several.
        out: folder for the table as JSON and CSV, and for the curves; `None` writes nothing.
        data: source of the passages, as in `analyze`. Those that stage 1 was trained on are left
            out.
        lengths: tokens of the texts; from 16 to 512 if none is given.
        k: how many of the memory tokens are read, from the first on; all if none is given.
        passages: number of passages. Each has the longest length and 32 tokens after it.
        seed: seed of the random draw.
        backbone: as in `memory`.
        dtype: as in `memory`.

    Raises:
        UserError: if there are too few passages, a number is out of its range, matplotlib is not
            installed, or for the reasons of `memory`.

    Examples:
        >>> (capacity,) = llm2comp.capacity(
        ...     "smollm2-135m-llm2comp/1-pretext",
        ...     data="boolq-passages",
        ...     lengths=[8, 16],
        ...     passages=2,
        ... )
        >>> [point.length for point in capacity.points]
        [8, 16]
    """
    from llm2comp.analysis.reading.write import capacity as measure_all
    from llm2comp.inference.load import model_names

    folder = None if out is None else user_path(out)
    return measure_all(
        model_names(models), folder, data, lengths, k, passages, seed, dtype, backbone
    )


def answer(
    models: str | Path | Sequence[str | Path], out: str | Path | None = None, *,
    questions: int = 300, seed: int = 0, backbone: str | Path | None = None,
    dtype: Precision = "auto",
) -> list[Answers]:  # fmt: skip
    """Answer questions of SQuAD v1.1 dev from the memory of a passage, and from its text.

    The frozen language model reads memory, or the full text, its last k tokens or nothing, and
    then the question. Beside these are controls: memory of another passage, in another order, and
    zeroed; and the passage that a search among all drawn passages finds.

    Args:
        models: as `model` in `memory`, one or several. What does not depend on the encoder is
            asked once for all that have one backbone.
        out: folder for everything as JSON; `None` writes nothing.
        questions: number of questions, each on another passage.
        seed: seed of the random draw.
        backbone: as in `memory`.
        dtype: as in `memory`.

    Returns:
        For each encoder and each case the answers, exact match, F1 (Rajpurkar et al., 2016) and the
        loss of the correct answer, which also tells encoders apart whose answers are mostly wrong.

    Raises:
        UserError: if there are fewer passages than questions, or for the reasons of `memory`.

    Examples:
        >>> (answers,) = llm2comp.answer("smollm2-135m-llm2comp/1-pretext", questions=2)
        >>> answers.mean("full", "f1") <= 1
        True
    """
    from llm2comp.analysis.reading.write import answer as answer_all
    from llm2comp.inference.load import model_names

    folder = None if out is None else user_path(out)
    return answer_all(model_names(models), folder, questions, seed, dtype, backbone)
