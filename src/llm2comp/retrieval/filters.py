"""The filters that an index takes: a small part of SQL, which is checked before LanceDB reads it.

DataFusion, by which LanceDB reads a filter, has functions that take all memory or do not end, and
some of its errors are panics. A search that has begun cannot be stopped.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from llm2comp.errors import UserError

if TYPE_CHECKING:
    from sqlglot.expressions import Expr

MOST_CHARACTERS = 10_000
"""Of a filter. So it has at most 2,000 conditions. DataFusion reads 32,000 of them, and 100,000
overflow its stack."""
DEEPEST = 16
"""Parentheses in each other. DataFusion refuses about 24; 100 with NOT do not end."""
MOST_WILDCARDS = 100
"""Of all LIKE together. With 1,000, a search takes 0.1 s for each MB of text."""
SHOWN = 200
"""Characters of a filter that a message shows."""
WORDS = re.compile(
    r"""
      (?P<string> ' (?: [^'] | '' )* ' )
    | (?P<name> ` [^`]+ ` (?!`) | " [^"]+ " (?!") | [^\W\d] \w* (?! [\w'"`]) )
    | (?P<number> (?: [0-9]+ \.? [0-9]* | \. [0-9]+ ) (?: [eE] [+-]? [0-9]+ )? (?! [\w'"`.]) )
    | (?P<sign> [=!]= | <> | [<>]=? | [=(),] | - (?!-) )
    | (?P<space> [ \t\r\n]+ )
    """,
    re.VERBOSE,
)
"""What a filter is made of. sqlglot and DataFusion divide it alike, because there are no comments,
placeholders, casts by `::`, or strings with a prefix or a backslash that escapes."""
BEFORE_PARENTHESES = ("and", "between", "in", "lower", "not", "or", "upper")
"""Names before a parenthesis that are no call of a function that is not allowed."""
REPEATED = (("not", "not"), ("-", "-"), ("-", "not"))
"""Words in a row that would nest without parentheses."""


def require_filter(where: str) -> None:
    """Check that a filter has nothing but what docs/guides/index.md allows.

    Names of columns and types are left to LanceDB, which knows them.

    Raises:
        UserError: if it has.
    """
    fault = _fault_of_words(where) or _fault_of_conditions(where)
    if fault is not None:
        shown = where if len(where) <= SHOWN else f"{where[:SHOWN]}..."
        raise UserError(
            f"the filter {shown!r} {fault}; a filter compares columns with strings and numbers, "
            "see Filters in docs/guides/index.md"
        )


def _fault_of_words(where: str) -> str | None:
    """Return what is wrong with the words of a filter, and with how they are nested."""
    if len(where) > MOST_CHARACTERS:
        return f"has {len(where):,} characters, and the most is {MOST_CHARACTERS:,}"
    end, depth, before, name_before = 0, 0, "", False
    while end < len(where):
        found = WORDS.match(where, end)
        if found is None:
            return f"has {where[end : end + 8]!r} at character {end + 1}, which is not allowed"
        end = found.end()
        if found.lastgroup == "space":
            continue
        word = found[0].lower()
        if word == "(" and name_before and before not in BEFORE_PARENTHESES:
            return f"calls {before}"
        if (before, word) in REPEATED:
            return f"has {word.upper()} after {before.upper()}"
        depth += {"(": 1, ")": -1}.get(word, 0)
        if depth > DEEPEST:
            return f"has more than {DEEPEST} parentheses in each other"
        before, name_before = word, found.lastgroup == "name"
    return None if before else "is blank"


def _fault_of_conditions(where: str) -> str | None:
    """Return what is wrong with the conditions of a filter, of which chains may be long."""
    import sqlglot  # of the extra `index`
    from sqlglot import exp

    try:
        # Of its dialects, this one has names in backticks, and no backslash that escapes.
        tree = sqlglot.parse_one(where, dialect="sqlite", into=exp.Condition)
    except sqlglot.ParseError as error:
        return "cannot be read" + "".join(f" at {one['highlight']!r}" for one in error.errors[:1])
    except RecursionError:
        return "is nested too deeply"
    comparisons = (exp.EQ, exp.NEQ, exp.LT, exp.LTE, exp.GT, exp.GTE, exp.Between)
    conditions, wildcards = [tree], 0
    while conditions:
        one = conditions.pop()
        values = list(one.iter_expressions())
        if isinstance(one, exp.And | exp.Or | exp.Not | exp.Paren):
            conditions += values
            continue
        if isinstance(one, exp.Column | exp.Boolean):
            continue
        if isinstance(one, exp.Like | exp.ILike) and one.expression.is_string:
            wildcards += len(re.findall("[%_]", one.expression.name))
        elif isinstance(one, exp.Is) and isinstance(one.expression, exp.Null | exp.Boolean):
            values = [one.this]
        elif not isinstance(one, comparisons) and not (isinstance(one, exp.In) and one.expressions):
            return f"has {one.key.upper()} where a condition should be"
        for value in values:
            # No row meets it. In a list with NOT, DataFusion takes it for a value.
            if isinstance(value.unnest(), exp.Null):
                return "compares with NULL, where IS NULL is meant"
            if not _is_value(value):
                return f"has {value.key.upper()} where a column or a value should be"
    if wildcards > MOST_WILDCARDS:
        return f"has {wildcards} % and _ in LIKE, and the most is {MOST_WILDCARDS}"
    return None


def _is_value(one: Expr) -> bool:
    """Return whether this is a column, a literal, or one of them with a minus, lower or upper."""
    from sqlglot import exp

    one = one.unnest()
    if isinstance(one, exp.Lower | exp.Upper):
        return isinstance(one.this, exp.Column)
    if isinstance(one, exp.Neg):
        return isinstance(one.this, exp.Column) or bool(one.this.is_number)
    return isinstance(one, exp.Column | exp.Literal | exp.Boolean)
