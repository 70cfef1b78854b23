"""Filters are a small part of SQL: that part means what SQL says, and all else is refused."""

import operator
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm2comp.errors import UserError
from llm2comp.retrieval.about import About
from llm2comp.retrieval.filters import MOST_CHARACTERS, require_filter
from llm2comp.retrieval.index import Index
from llm2comp.retrieval.rows import Kinds, Row
from llm2comp.retrieval.store import Store

KINDS = Kinds({"year": "int", "price": "float", "ok": "bool", "lang": "str", "first name": "str"})
STRINGS = [
    "Aa",
    "aa",
    "b%",
    "bc",
    "x_y",
    "it's",
    "c\\",
    "日本",
    "Ö",
    "",
    "two\nlines",
    "-- /* ; $1 ?",
]
NUMBERS = [1990, 2020, -3, 0, None, 2**62]
FLOATS = [0.5, -1.5, 2.0, None, 1e20]
BOOLS = [True, False, None]
ROWS = [
    Row(
        f"r{n}",
        f"word {STRINGS[n * 5 % len(STRINGS)]}",
        {
            "year": NUMBERS[n % len(NUMBERS)],
            "price": FLOATS[n % len(FLOATS)],
            "ok": BOOLS[n // 2 % len(BOOLS)],
            "lang": [*STRINGS, None][n % (len(STRINGS) + 1)],
            "first name": [None, *STRINGS][n * 3 % (len(STRINGS) + 1)],
        },
    )
    for n in range(60)
]
SAYS: dict[str, str] = {
    "repeat(text,1000000) = 'a'": "calls repeat",
    "range(0,1000000000) is null": "calls range",
    "levenshtein(repeat(text,500), repeat(text,501)) > 5": "calls levenshtein",
    '"repeat"(text, 9) = text': 'calls "repeat"',
    "cast(year as decimal(99,2)) = 1900": "calls cast",
    "arrow_cast(year, 'Utf8') = '1'": "calls arrow_cast",
    "year::int = 1": "has '::int = ' at character 5",
    "year = ?": r"has '\?' at character 8",
    "text = $1": r"has '\$1' at character 8",
    "$$a$$ = text": "has '.* at character 1",
    ":x = 1": "has ':x = 1' at character 1",
    "N'a' = text": "at character 1",
    "text = E'\\n'": "at character 8",
    "text = U&'a'": "at character 9",
    "year = 0x1": "at character 8",
    "lang = 'de') or (ok": r"cannot be read at '\)'",
    "(ok": "cannot be read",
    "ok)": "cannot be read",
    "ok -- or not": "has '-- or not?' at character 4",
    "ok /* or */": "at character 4",
    "ok; ok": "at character 3",
    "text = 'a\\'' or ok": "has .* at character",
    "text = 'a' 'b'": "has CONCAT where a column or a value should be",
    "text || id = 'a'": "at character 6",
    "year + 1 > 2": r"has '\+ 1 > 2' at character 6",
    "regexp_like(text, 'a')": "calls regexp_like",
    "text rlike 'a'": "has REGEXPLIKE where a condition should be",
    "text like lang": "has LIKE where a condition should be",
    "text like 'a' escape '!'": "has ESCAPE where a condition should be",
    "year in (select 1)": "cannot be read|has SELECT|has IN ",
    "year in ()": "has IN where a condition should be",
    "year between 1": "cannot be read",
    "year isnull or": "cannot be read",
    "year = 1 = ok": "has EQ where a column or a value should be",
    "lower(lower(lang)) = 'a'": "has LOWER where",
    "date '2020-01-01' = lang": "has CAST where",
    "current_date = lang": "has CURRENTDATE where",
    "case when ok then true end": "has CASE where a condition should be",
    "year is 5": "has .* where a condition should be",
    "year = null": "compares with NULL, where IS NULL is meant",
    "lang not in (null) and not lang not in ('Aa')": "compares with NULL",
    "null is null": "compares with NULL",
    "'a'": "has LITERAL where a condition should be",
    "text.year = 1": "at character 5",
    " ": "is blank",
    "not not ok": "has NOT after NOT",
    "year = - - 1": "has - after -",
    "(" * 17 + "ok" + ")" * 17: "more than 16 parentheses in each other",
    "not (" * 70 + "ok" + ")" * 70: "more than 16 parentheses",
    "cast(" * 70 + "1" + " as int)" * 70 + " = 1": "calls cast",
    "ok or " * 2_000 + "ok": "has 12,002 characters, and the most is 10,000",
    "year" + "=1" * 2_000: "has EQ where",
    "case " * 1_900: "cannot be read|nested too deeply",
    "lang like '" + "%a" * 101 + "'": "has 101 % and _ in LIKE, and the most is 100",
}
"""What is wrong with filters that are refused."""


@pytest.mark.parametrize("where", SAYS, ids=lambda where: where[:30])
def test_what_is_not_allowed_is_named(where: str) -> None:
    with pytest.raises(UserError, match=f"(?s)^the filter .*{SAYS[where]}") as caught:
        require_filter(where)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder: Path = tmp_path_factory.mktemp("filters")
    about = About(model="none", dim=8, precision="int8", document=[], query=[])
    store = Store.create(folder, about)
    store.put(ROWS, np.eye(8, dtype=np.float32)[np.arange(len(ROWS)) % 8], KINDS)
    store.optimize()
    return Index(folder)


def meeting(index: Index, where: str) -> set[str]:
    """The ids that a search by words and one by vectors find, which are the same."""
    words, vectors = (
        {hit.id for hit in index.find("word", vector, 100, where=where, by=by)}
        for vector, by in ((None, "text"), (np.eye(8, dtype=np.float32)[0], "vector"))
    )
    assert words == vectors
    return words


@pytest.mark.parametrize(
    ("where", "meets"),
    [
        ("`first name` = 'it''s'", lambda m: m["first name"] == "it's"),
        ("\"first name\" = 'it''s'", lambda m: m["first name"] == "it's"),
        ("YEAR >= .5 and Price<1.", None),
        ("Year==2020\n\tAND ok", lambda m: m["year"] == 2020 and m["ok"]),
        ("lang = 'c\\'", lambda m: m["lang"] == "c\\"),
        (r"lang like 'b\%'", lambda m: m["lang"] == "b%"),
        ("lang = '-- /* ; $1 ?'", lambda m: m["lang"] == "-- /* ; $1 ?"),
        ("(" * 16 + "ok" + ")" * 16, lambda m: m["ok"]),
        ("not (" * 16 + "ok" + ")" * 16, lambda m: m["ok"]),
        ("ok or " * 1_600 + "ok", lambda m: m["ok"]),
        ("ok or year > 5 and " * 500 + "ok", lambda m: m["ok"]),
        ("year in (" + "2020, " * 1_600 + "-3)", lambda m: m["year"] in (2020, -3)),
        ("lang like '" + "%" * 100 + "'", lambda m: m["lang"] is not None),
        ("true", lambda m: True),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else type(value).__name__,
)
def test_what_is_allowed_finds_what_it_says(
    index: Index, where: str, meets: Callable[[Any], bool] | None
) -> None:
    assert len(where) <= MOST_CHARACTERS
    if meets is None:  # a literal of a type that the column has not
        with pytest.raises(UserError, match=r"Float64.*the columns are id \(str\)"):
            index.find("word", None, 100, where=where, by="text")
    else:
        assert meeting(index, where) == {row.id for row in ROWS if meets(row.metadata)}


Condition = tuple[str, Callable[[dict[str, Any]], bool | None]]
"""A filter, and what SQL says of a row: None is unknown."""
OPERATORS = {
    "=": operator.eq,
    "!=": operator.ne,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
COLUMNS: dict[str, list[tuple[str, str]]] = {
    "int": [("year", "year"), ("Year", "year"), ('"year"', "year")],
    "float": [("price", "price"), ("`price`", "price")],
    "bool": [("ok", "ok"), ("OK", "ok")],
    "str": [("lang", "lang"), ("`first name`", "first name"), ('"first name"', "first name")],
}
LITERALS: dict[str, list[Any]] = {
    "int": [*NUMBERS[:4], 7],
    "float": [*FLOATS[:3], 2, -7, 1e20],
    "bool": BOOLS[:2],
    "str": [*STRINGS, "AA", "b_"],
}


def sql(value: Any) -> str:
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return "null" if value is None else str(value).lower()


def negated(said: bool | None) -> bool | None:
    return None if said is None else not said


def both(left: bool | None, right: bool | None) -> bool | None:
    if left is False or right is False:
        return False
    return None if left is None or right is None else True


def compared(name: str, left: Any, right: Any) -> bool | None:
    return None if left is None or right is None else OPERATORS[name](left, right)


def among(value: Any, values: list[Any]) -> bool | None:
    return None if value is None else value in values


def like(value: str | None, pattern: str, flags: re.RegexFlag) -> bool | None:
    parts = {"%": ".*", "_": "."}
    return (
        None
        if value is None
        else bool(
            re.fullmatch(
                "".join(parts.get(one, re.escape(one)) for one in pattern), value, flags | re.S
            )
        )
    )


@st.composite
def simple(draw: st.DrawFn, alone: bool = False) -> Condition:
    kind = draw(st.sampled_from(list(COLUMNS)))
    said, column = draw(st.sampled_from(COLUMNS[kind]))
    no = draw(st.sampled_from(["", "not "]))
    turn = negated if no else lambda value: value
    shape = draw(st.sampled_from(["compare", "turned", "in", "between", "is", "own"]))
    one, two = draw(st.sampled_from(LITERALS[kind])), draw(st.sampled_from(LITERALS[kind]))
    sign = draw(st.sampled_from(list(OPERATORS)))
    if shape == "turned":
        return f"{sql(one)}{sign} {said}", lambda m: compared(sign, one, m[column])
    if shape == "in" and not alone:
        # DataFusion joins lists of a column, and forgets then that NOT of no value is no value.
        ids = draw(st.lists(st.sampled_from([row.id for row in ROWS]), min_size=1))
        return f"id {no}in ({', '.join(map(sql, ids))})", lambda m: turn(m["id"] in ids)
    if shape == "in":
        values = draw(st.lists(st.sampled_from(LITERALS[kind]), min_size=1, max_size=4))
        listed = ", ".join(map(sql, values))
        return f"{said} {no}in ({listed})", lambda m: turn(among(m[column], values))
    if shape == "between" and kind != "bool":
        return (
            f"{said} {no}BETWEEN {sql(one)} and {sql(two)}",
            lambda m: turn(both(compared(">=", m[column], one), compared("<=", m[column], two))),
        )
    if shape == "is":
        what = draw(st.sampled_from([None, True, False] if kind == "bool" else [None]))
        return f"{said} is {no}{sql(what)}", lambda m: turn(m[column] is what)
    if shape == "own" and kind == "bool":
        return said, lambda m: m[column]
    if shape == "own" and kind == "str":
        name, flags = draw(st.sampled_from([("like", re.NOFLAG), ("ILIKE", re.I)]))
        pattern = draw(st.text("aAbÖ%_'日\n", max_size=4))
        return f"{said} {no}{name} {sql(pattern)}", lambda m: turn(like(m[column], pattern, flags))
    if shape == "own" and kind == "int":
        return f"-{said} {sign} {sql(one)}", lambda m: compared(
            sign, None if m[column] is None else -m[column], one
        )
    if kind == "str" and draw(st.booleans()):
        name = draw(st.sampled_from(["lower", "UPPER"]))
        change = getattr(str, name.lower())
        return f"{name}({said}) {sign} {sql(one)}", lambda m: compared(
            sign, None if m[column] is None else change(m[column]), one
        )
    return f"({said}){sign}{sql(one)}", lambda m: compared(sign, m[column], one)


def joined(parts: st.SearchStrategy[Condition]) -> st.SearchStrategy[Condition]:
    """Conditions without parentheses of their own, so that precedence counts."""

    def chain(ored: list[list[tuple[bool, Condition]]]) -> Condition:
        def meets(row: dict[str, Any]) -> bool | None:
            every: bool | None = False
            for group in ored:
                met: bool | None = True
                for no, (_, part) in group:
                    met = both(met, negated(part(row)) if no else part(row))
                every = negated(both(negated(every), negated(met)))
            return every

        said = " or ".join(
            " AND ".join(("not " if no else "") + text for no, (text, _) in group) for group in ored
        )
        return f"({said})", meets

    group = st.lists(st.tuples(st.booleans(), parts), min_size=1, max_size=3)
    return st.lists(group, min_size=1, max_size=3).map(chain)


@settings(
    max_examples=300, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
)
@given(simple(alone=True) | st.recursive(simple(), joined, max_leaves=8))
def test_random_filters_mean_what_sql_says(index: Index, condition: Condition) -> None:
    where, meets = condition
    wanted = {row.id for row in ROWS if meets({**row.metadata, "id": row.id}) is True}
    assert meeting(index, where) == wanted, where
