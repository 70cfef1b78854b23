"""What may be in a user's files and arguments."""

import csv
import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

FORMATS = [".txt", ".jsonl", ".csv", ".parquet"]
ODD_TEXTS = [
    "",
    " ",
    "\t\r\n",
    "\x00",
    "a\x00b",
    "\ufeff",
    "\ufeffbegins with a BOM",
    "e\u0301",
    "\u00e9",
    "\ud800",
    "a \udcff b",
    "\u2028",
    "line\u2029line\u0085line",
    "\u202eright to left",
    "emoji \U0001f600\U0001f3fd",
    "\U0010ffff",
    "<pad>",
    "<s></s><s>",
    "<|memory_0|>",
    "nan",
    "null",
    "[]",
    "%s %d {} {0}",
    "[red]markup[/red]",
    "[/nothing]",
    "\x1b[31mred",
    "'\"`\\",
    "../..",
    "a" * 300,
    "word " * 3000,
]
ODD_NUMBERS = [
    0,
    -1,
    1,
    2,
    3,
    0.5,
    -0.0,
    1e-320,
    1e-30,
    1e30,
    1e308,
    float("inf"),
    float("-inf"),
    float("nan"),
    2**31,
    2**63,
    2**64,
    -(2**63) - 1,
    10**400,
]

texts = st.one_of(
    st.sampled_from(ODD_TEXTS), st.text(max_size=30), st.text(alphabet="ab é", max_size=200)
)
"""Texts, also with lone surrogates."""
encodable_texts = texts.filter(lambda text: text.isprintable() or _is_encodable(text))
"""Texts without lone surrogates."""
numbers = st.one_of(st.sampled_from(ODD_NUMBERS), st.integers(), st.floats())
scalars: st.SearchStrategy[Any] = st.one_of(st.none(), st.booleans(), numbers, texts)


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        inner,
        lambda part: st.one_of(
            st.lists(part, max_size=3), st.dictionaries(st.text(max_size=5), part, max_size=3)
        ),
        max_leaves=5,
    )


values = _nested(scalars)
"""Anything that JSON and YAML can say."""
modest_values = _nested(
    st.one_of(st.none(), st.booleans(), st.integers(-2, 100), st.floats(), texts)
)
"""The same without large integers: a model of a billion layers takes all memory to build."""


def mostly(usual: Any, others: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """The usual value, and others in about one case of five."""
    return st.integers(0, 4).flatmap(lambda number: others if number == 4 else st.just(usual))


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes of a file that was cut, edited, or saved in another way."""
    kind = draw(st.sampled_from(["cut", "flip", "insert", "empty", "zeros", "twice", "encoding"]))
    place = draw(st.integers(0, max(0, len(content) - 1)))
    if kind == "cut":
        return content[:place]
    if kind == "flip":
        bit = 1 << draw(st.integers(0, 7))
        return (
            content[:place]
            + bytes(b ^ bit for b in content[place : place + 1])
            + content[place + 1 :]
        )
    if kind == "insert":
        return content[:place] + draw(st.binary(min_size=1, max_size=20)) + content[place:]
    if kind == "empty":
        return b""
    if kind == "zeros":
        return content[:place] + bytes(len(content) - place)
    if kind == "twice":
        return content + content
    return reencoded(content, draw(st.sampled_from(["utf-16", "utf-32", "utf-8-sig", "utf-7"])))


def reencoded(content: bytes, encoding: str) -> bytes:
    """Return a text in another encoding."""
    return content.decode("utf-8", "replace").encode(encoding, "replace")


@st.composite
def changed(draw: st.DrawFn, tree: Any, with_values: st.SearchStrategy[Any] = values) -> Any:
    """A tree of mappings and lists of which one to three parts are others."""
    tree = json.loads(json.dumps(tree))
    for _ in range(draw(st.integers(1, 3))):
        node, key = draw(st.sampled_from(_places(tree)))
        action = draw(
            st.sampled_from(["replace", "replace", "replace", "remove", "rename", "repeat"])
        )
        if action == "replace":
            node[key] = draw(with_values)
        elif action == "remove":
            del node[key]
        elif action == "repeat" and isinstance(node, list):
            node.append(node[key])
        elif isinstance(node, dict):
            name = draw(st.one_of(st.sampled_from([f"{key}s", f" {key}", key.upper()]), texts))
            node[name] = node.pop(key)
        if not _places(tree):
            break
    return tree


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Return all parts of a tree, each as its parent and its key."""
    if isinstance(tree, dict):
        keys: list[Any] = list(tree)
    elif isinstance(tree, list):
        keys = list(range(len(tree)))
    else:
        return []
    return [(tree, key) for key in keys] + [p for key in keys for p in _places(tree[key])]


def table_bytes(table: list[Any], suffix: str, end: str) -> bytes | None:
    """Return the rows in a format, or nothing if it cannot hold them."""
    objects = [row if isinstance(row, dict) else {"text": row} for row in table]
    names = list(dict.fromkeys(name for row in objects for name in row))
    if suffix == ".parquet":
        try:
            arrow = pa.table({name: [row.get(name) for row in objects] for name in names})
            stream = io.BytesIO()
            pq.write_table(arrow, stream)
        except (pa.ArrowException, OverflowError, UnicodeError):
            return None
        return stream.getvalue()
    if suffix == ".csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator=end)
        writer.writerows([names, *([row.get(name) for name in names] for row in objects)])
        return text.getvalue().encode("utf-8", "surrogatepass")
    if suffix == ".jsonl":
        lines = [json.dumps(row, ensure_ascii=len(table) % 2 == 0) for row in table]
    else:
        lines = [str(next(iter(row.values()), "")) for row in objects]
    return "".join(line + end for line in lines).encode("utf-8", "surrogatepass")
