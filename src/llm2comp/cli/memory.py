"""Commands that read memory again and measure what it holds."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from llm2comp import api
from llm2comp.cli.shared import Dtype, ModelName, Seed, preload

BackboneFolder = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="The language model that reads, where the encoder names one that is not here.",
    ),
]


def read(
    model: ModelName,
    text: Annotated[
        str,
        typer.Argument(
            metavar="TEXT|FILE",
            help="A text, or a file of texts as `encode` takes it; - is standard input.",
        ),
    ],
    prompt: Annotated[str, typer.Option(help="Text after the memory.")] = "",
    max_new_tokens: Annotated[
        int, typer.Option(min=0, help="The most tokens to say; 0 only measures.")
    ] = 64,
    temperature: Annotated[
        float, typer.Option(min=0, help="0 takes the likeliest token; above 0, tokens are drawn.")
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option(help="Draw from the likeliest tokens whose probabilities sum to this.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    backbone: BackboneFolder = None,
    dtype: Dtype = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Let the frozen language model go on from the memory of a text, and measure what it holds.

    Beside it is what the model says after the text itself. The table has the loss of the text's
    last quarter, given memory of what is before it and given other things. If stage 1 trained
    memory to give the text again, it is the loss of the text.

    \b
    Examples:
      llm2comp read smollm2-135m-llm2comp/1-pretext "Whales are mammals: they breathe air."
      llm2comp read smollm2-135m-llm2comp/1-pretext texts.txt --max-new-tokens 0
      llm2comp read runs/first/1-pretext text.txt --temperature 0.7 --top-p 0.9 --seed 1
      llm2comp read runs/first/1-pretext "Roman coins" --json
    """
    from llm2comp.analysis.reading.texts import given_texts, read
    from llm2comp.inference.reading.going_on import Sampling

    sampling = Sampling(max_new_tokens, temperature, top_p, seed) if max_new_tokens else None
    texts = given_texts(text)  # before a model is loaded
    preload("llm2comp.analysis.reading.texts")
    from llm2comp.inference.reading.reader import Reader
    from llm2comp.utils import tables

    reader = Reader.open(model, dtype, backbone)
    reading = read(reader, texts, prompt, sampling, None if as_json else _tell)
    if as_json:
        typer.echo(reading.as_json())
        return
    tables.show_cells(reading.cells())
    for line in (*reading.lines(), *reading.notes):
        typer.echo(line)


def _tell(piece: str) -> None:
    typer.echo(piece, nl=False)
    sys.stdout.flush()


def capacity(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL", help="Encoder folders, released names, or hub ids."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the table as JSON and CSV, and for the curves.")
    ] = None,
    data: Annotated[
        str, typer.Option(help="Passages: packaged source, file, hub id, or -.")
    ] = "news-passages",
    length: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Tokens of a text; may be repeated. Default: from 16 to 512."),
    ] = None,
    k: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Memory tokens that are read; may be repeated. Default: all."),
    ] = None,
    passages: Annotated[int, typer.Option(min=1, help="Number of passages to draw.")] = 32,
    seed: Seed = 0,
    backbone: BackboneFolder = None,
    dtype: Dtype = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Measure how much a memory holds: the loss given memory over the length of the text.

    Beside it are the losses given the full text, its last k tokens, and nothing. Passages that
    stage 1 was trained on are left out.

    \b
    Examples:
      llm2comp capacity smollm2-135m-llm2comp/1-pretext --out runs/capacity
      llm2comp capacity runs/first/1-pretext --length 16 --length 64 --passages 8
      llm2comp capacity runs/k4/1-pretext runs/k8/1-pretext --data my.txt --out runs/capacity
    """
    preload("llm2comp.analysis.reading.write")
    from llm2comp.analysis.reading.write import as_dict, cells
    from llm2comp.utils import tables

    measured = api.capacity(
        models,
        out,
        data=data,
        lengths=length or (),
        k=k or (),
        passages=passages,
        seed=seed,
        backbone=backbone,
        dtype=dtype,
    )
    if as_json:
        typer.echo(json.dumps([as_dict(each) for each in measured], indent=1, ensure_ascii=False))
        return
    tables.show_cells(cells(measured))
    for each in measured:
        for line in (*map(each.verdict, each.ks), *each.notes):
            typer.echo(line)
    if out is not None:
        typer.echo(f"The numbers and the curves are in {out}")


def answer(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL", help="Encoder folders, released names, or hub ids."),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for everything as JSON.")] = None,
    questions: Annotated[int, typer.Option(min=2, help="Number of questions to draw.")] = 300,
    seed: Seed = 0,
    backbone: BackboneFolder = None,
    dtype: Dtype = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Answer questions of SQuAD from the memory of a passage, and from its text.

    The frozen language model reads memory, the full text, its last k tokens or nothing, and then
    the question. The table has exact match, F1 and the loss of the correct answer, with 95 %
    intervals, and the tokens and seconds of a question.

    \b
    Examples:
      llm2comp answer smollm2-135m-llm2comp/1-pretext --out runs/answers
      llm2comp answer runs/first/model smollm2-135m-llm2comp --questions 100 --seed 1
    """
    preload("llm2comp.analysis.reading.write")
    from llm2comp.analysis.reading.answers import cells
    from llm2comp.utils import tables

    measured = api.answer(
        models, out, questions=questions, seed=seed, backbone=backbone, dtype=dtype
    )
    if as_json:
        typer.echo(json.dumps([each.as_dict() for each in measured], indent=1, ensure_ascii=False))
        return
    tables.show_cells(cells(measured))
    for each in measured:
        for line in each.lines():
            typer.echo(line)
    if out is not None:
        typer.echo(f"The answers are in {out / 'answers.json'}")
