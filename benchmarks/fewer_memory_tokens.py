"""Seconds that a text takes with fewer of an encoder's memory tokens, by the length of the text.

Each number of memory tokens encodes the same 32 texts in turn, in the precision that
`llm2comp.load` chooses.

    python benchmarks/fewer_memory_tokens.py [MODEL]
"""

import random
import sys

from harness import in_turn, report

from llm2comp.inference.load import load
from llm2comp.utils.hardware import retain_freed_memory

MODEL = "smollm2-135m-llm2comp"
COUNTS = (8, 4, 2, 1)
WORDS = (6, 24)
TEXTS = 32
ROUNDS = 3
VOCABULARY = [
    "river",
    "mountain",
    "coin",
    "museum",
    "whale",
    "water",
    "bread",
    "yeast",
    "market",
    "price",
    "stone",
    "winter",
]


def main() -> None:
    """Measure, print a table, write the numbers."""
    retain_freed_memory()  # as the command line does
    name = sys.argv[1] if len(sys.argv) > 1 else MODEL
    models = {count: load(name, memory_tokens=count) for count in COUNTS}
    draw = random.Random(0)
    rows = []
    for words in WORDS:
        texts = [" ".join(draw.choices(VOCABULARY, k=words)) for _ in range(TEXTS)]
        runs = {
            str(count): lambda model=model, texts=texts: model.encode(texts)
            for count, model in models.items()
        }
        taken = in_turn(runs, ROUNDS)
        tokens = len(models[1].tokenizer(texts[0])["input_ids"]) - 1
        rows.append([tokens, *(1000 * taken[str(count)] / TEXTS for count in COUNTS)])
    report(
        "fewer_memory_tokens",
        ["tokens a text", *(f"{count}, ms a text" for count in COUNTS)],
        rows,
    )


if __name__ == "__main__":
    main()
