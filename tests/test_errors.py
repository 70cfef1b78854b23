import pytest

from llm2comp.errors import UserError, one_line


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
