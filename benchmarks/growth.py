"""How the cost of encoding grows: length of text, memory tokens, batch, rows of a file.

The released encoder in bfloat16 where the processor has it. A file's rows are sentences, or the
answers of quiz questions, repeated where there are too few; each file is encoded in a process of
its own, whose resident memory is looked at every tenth of a second: its largest until a hundredth
of the time, a twentieth (of 200,000 rows, the first hundredth of a million), half and the whole.

    python benchmarks/growth.py [--sentences 1000 10000 100000] [--answers 200000]
"""

import argparse
import itertools
import tempfile
import threading
from functools import partial
from pathlib import Path

import psutil
import torch
from harness import finish, in_processes, in_turn, report, seconds
from sentence_transformers import SentenceTransformer

from llm2comp import recipe
from llm2comp.data import catalog
from llm2comp.inference.encode_file import encode_file
from llm2comp.inference.load import load_in
from llm2comp.inference.token_batching import TokenBatched
from llm2comp.model import encoder
from llm2comp.model.attention import configure_attention
from llm2comp.model.backbone import load_backbone
from llm2comp.model.memory_tokens import add_memory_tokens
from llm2comp.utils.hardware import compute_dtype, retain_freed_memory

MODEL = "smollm2-135m-llm2comp"
LENGTHS = (16, 32, 64, 128, 256, 512, 1024, 2048)
TOKENS = 8192
MEMORY = (1, 2, 4, 8, 16, 32)
BATCHES = (1, 4, 16, 32, 64, 256)
SENTENCES = (1_000, 10_000, 100_000)
ANSWERS = (200_000,)
COLUMNS = {"nlp-corpus-sentences": "text", "jeopardy-pairs": "positive"}
SHARES = (1, 5, 50, 100)
ROUNDS = 3


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentences", type=int, nargs="*", default=SENTENCES, help="rows of files")
    parser.add_argument("--answers", type=int, nargs="*", default=ANSWERS, help="rows of files")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    options = parser.parse_args()
    retain_freed_memory()  # as the command line does
    if options.variant:
        source, count = options.variant.split()
        encode_rows(source, int(count))
        return
    group_by_length()
    by_memory()
    by_batch()
    sizes = (options.sentences, options.answers)
    by_rows([f"{source} {n}" for source, of in zip(COLUMNS, sizes, strict=True) for n in of])


def group_by_length() -> None:
    """Texts of so many tokens, 8,192 tokens in all."""
    model = released_encoder()
    model.max_seq_length = max(LENGTHS) + len(model.preprocess([""])["input_ids"][0])
    runs = {n: partial(model.encode, of_tokens(model, n)) for n in LENGTHS}
    taken = in_turn(runs, ROUNDS)
    rows = [[n, TOKENS / taken[n], taken[n] / taken[64]] for n in LENGTHS]
    report("growth_length", ["tokens a text", "tokens/s", "seconds a token, to 64's"], rows)


def by_memory() -> None:
    """Texts of 64 tokens with k memory tokens behind them; untrained, for cost is the same."""
    models = {k: untrained(k) for k in MEMORY}
    texts = of_tokens(models[1], 64)
    taken = in_turn({k: partial(model.encode, texts) for k, model in models.items()}, ROUNDS)
    rows = [[k, len(texts) / taken[k], taken[k] / taken[1], (64 + k) / 65] for k in MEMORY]
    report("growth_memory", ["k", "texts/s", "time to k = 1", "tokens to k = 1"], rows)


def by_batch() -> None:
    """Passages of mixed lengths, by --batch-size."""
    model = released_encoder()
    texts = [row["text"] for row in itertools.islice(catalog.rows("boolq-passages"), 128)]
    runs = {n: partial(model.encode, texts, batch_size=n) for n in BATCHES}
    taken = in_turn(runs, ROUNDS)
    rows = [[n, len(texts) / taken[n], taken[n] / taken[32]] for n in BATCHES]
    report("growth_batch", ["batch size", "texts/s", "time to 32"], rows)


def by_rows(files: list[str]) -> None:
    """Files of so many rows of a source."""
    found = in_processes(__file__, files, 1)
    numbers = ("seconds", "rate", *(f"until {share} %" for share in SHARES))
    columns = ["rows", "seconds", "tokens/s", *(f"GB until {share} %" for share in SHARES)]
    rows = [[name, *(found[name][key] for key in numbers)] for name in files]
    report("growth_rows", columns, rows)


def encode_rows(source: str, count: int) -> None:
    """Encode a file of so many rows in this process."""
    model = released_encoder()
    known = [row[COLUMNS[source]] for row in catalog.rows(source)]
    texts = list(itertools.islice(itertools.cycle(known), count))
    slices = (texts[start : start + 1000] for start in range(0, count, 1000))
    tokens = sum(model.preprocess(part)["attention_mask"].sum().item() for part in slices)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "texts.txt"
        file.write_text("\n".join(" ".join(text.split()) for text in texts), encoding="utf-8")
        del known, texts
        ended = threading.Event()
        resident: list[int] = []

        def watch() -> None:
            while not ended.wait(0.1):
                resident.append(psutil.Process().memory_info().rss)

        watcher = threading.Thread(target=watch)
        watcher.start()
        taken = seconds(lambda: encode_file(model, file, Path(scratch) / "vectors.npy"))
        ended.set()
        watcher.join()
    looks = len(resident)
    until = {f"until {n} %": max(resident[: -(-looks * n // 100)]) / 1e9 for n in SHARES}
    finish(seconds=taken, rate=tokens / taken, **until)


def released_encoder() -> SentenceTransformer:
    """Load the released encoder."""
    return load_in(MODEL, compute_dtype("auto"))


def untrained(k: int) -> SentenceTransformer:
    """Make an encoder with k memory tokens of the backbone."""
    model, tokenizer = load_backbone("smollm2-135m", dtype=compute_dtype("auto"))
    extended = add_memory_tokens(model, tokenizer, recipe.Memory(tokens=k), 0, add_bos=True)
    stock = encoder.assemble(model, extended, k, causal=True)
    token_batched = TokenBatched(modules=list(stock))
    body = encoder.encoder_body(token_batched)
    body.to(compute_dtype("auto"))
    configure_attention(body)
    return token_batched


def of_tokens(model: SentenceTransformer, n: int) -> list[str]:
    """Return texts of about n tokens, 8,192 tokens in all."""
    texts = " ".join(row["text"] for row in itertools.islice(catalog.rows("enwiki-passages"), 200))
    text = texts[: TOKENS * 8]
    ids = model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][:TOKENS]
    return [model.tokenizer.decode(ids[i : i + n]) for i in range(0, TOKENS, n)]


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
