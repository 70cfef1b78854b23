import ast
import re
from itertools import pairwise
from pathlib import Path

import pytest

from llm2comp.errors import UserError, counted, one_line

SRC = Path(__file__).parents[1] / "src" / "llm2comp"


@pytest.mark.parametrize(
    ("message", "limit", "expected"),
    [
        ("one\n  two\tthree ", 200, "one two three"),
        ("abcdefghij", 10, "abcdefghij"),
        ("abcdefghijk", 10, "abcdefg..."),
        ("x" * 1000, None, "x" * 1000),
        ("", 200, ""),
    ],
)
def test_an_error_becomes_one_line_within_the_limit(
    message: str, limit: int | None, expected: str
) -> None:
    assert one_line(UserError(message), limit) == expected


@pytest.mark.parametrize(
    ("number", "words", "said"),
    [
        (0, ("row",), "0 rows"),
        (1, ("row",), "1 row"),
        (1024, ("memory token",), "1,024 memory tokens"),
        (1, ("query", "queries"), "1 query"),
        (2, ("text is", "texts are"), "2 texts are"),
    ],
)
def test_a_number_and_its_noun_agree(number: int, words: tuple[str, ...], said: str) -> None:
    assert counted(number, *words) == said


PLURAL = re.compile(r" (files|rows|texts|pairs|embeddings|memory tokens|steps|trials)\b")
NEVER_ONE = {
    "{', '.join(map(str, counts))}": "memory tokens of several counts",
    "{DEAD_STEPS}": "a constant",
    "{ENDING}": "a kind of files",
    "{MOST_HITS}": "a constant",
    "{analysis.n:,}": "more than a sample",
    "{k}": "one memory token has words of its own",
    "{known}": "kinds of files",
    "{len(files)}": "not one",
    "{len(inputs)}": "more than the most",
    "{memory_tokens or tokens}": "not one",
    "{reader.k}": "more than the fewest",
    "{speed:,.0f}": "a speed",
    "{tally.read}": "one row has words of its own",
    "{texts}": "more than a mini-batch",
}
"""What messages have before a fixed plural, and why it is never one thing."""


def test_no_message_says_1_rows() -> None:
    """`counted` knows the noun of one."""
    found = {}
    for file in sorted(SRC.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for value, after in pairwise(node.values) if isinstance(node, ast.JoinedStr) else ():
                is_number = isinstance(value, ast.FormattedValue)
                if is_number and isinstance(after, ast.Constant) and PLURAL.match(after.value):
                    number = ast.unparse(ast.JoinedStr([value]))[2:-1]
                    found[number] = f"{file.name}:{node.lineno}: {number}{after.value}"
    assert [found[number] for number in found if number not in NEVER_ONE] == []
    assert set(found) == set(NEVER_ONE)
