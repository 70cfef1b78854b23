"""Texts to encode and to search: a row of finite numbers for each, or one line."""

from functools import lru_cache
from pathlib import Path

import pytest
from cases import Outcome, case, cases, require_embeddings, run
from hypothesis import assume, example, given
from hypothesis import strategies as st
from strategies import FORMATS, damaged, mostly, reencoded, table_bytes, texts

from llm2comp.inference import load as loading

OUTPUTS = [
    "out.npy",
    "out.parquet",
    "kept.npy",
    "kept.parquet",
    "new/folder/out.npy",
    "folder.npy",
    "link.npy",
    "/dev/null",
    "/dev/full",
    "out.txt",
    "out.NPY",
    ".npy",
    "",
    ".",
    "-",
    f"{'long' * 60}.npy",
    f"{'very-long' * 60}.npy",
    "line\nbreak.npy",
    "emoji \U0001f600.parquet",
    "kept.npy/out.npy",
]
FILES = ["", "folder.txt", "missing.txt", "/dev/null", "/dev/zero", "link.npy", "kept.npy", "texts"]
MERGES = ["0.5", "0.9", "1", "1.0001", "0", "-1", "nan", "inf", "1e-9", "", "x"]
SIZES = ["1", "2", "3", "1000000", "99999999999999999999", "0", "-1", "1.5", "", "x", "²"]


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes, int | None]:
    """The ending of a file, what it holds, and its number of texts if that is known."""
    found = draw(st.lists(texts, max_size=6))
    suffix = draw(st.sampled_from(FORMATS))
    rows = [{"text": text, "number": number} for number, text in enumerate(found)]
    content = table_bytes(rows, suffix, draw(st.sampled_from(["\n", "\n", "\r\n"])))
    assume(content is not None)
    assert content is not None
    kind = draw(st.sampled_from(["good", "good", "good", "damaged", "encoding"]))
    if kind == "damaged":
        return suffix, draw(damaged(content)), None
    if kind == "encoding" and suffix != ".parquet":
        encoding = draw(st.sampled_from(["utf-8-sig", "utf-16", "utf-32", "cp1252"]))
        return suffix, reencoded(content, encoding), None
    split = suffix == ".txt" and any("\n" in text for text in found)
    return suffix, content, None if split else len(found)


names = mostly(None, st.one_of(st.just("-"), st.sampled_from(FILES)))
sizes = mostly(None, st.sampled_from(SIZES))
prompts = mostly([], st.sampled_from([["--prompt", p] for p in ("query", "document", "x")]))
options = st.tuples(
    st.sampled_from([[], [], [], ["--merge"]]).flatmap(
        lambda name: st.sampled_from(MERGES).map(lambda value: [*name, value] if name else [])
    ),
    mostly([], st.sampled_from([["--dtype", d] for d in ("float32", "bfloat16", "int8")])),
).map(lambda pair: [*pair[0], *pair[1]])


@pytest.fixture(scope="module", autouse=True)
def _load_once() -> object:
    """Load the encoder once with each setting."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load", lru_cache(loading.load))
        yield


@cases(130)
@given(
    file=files(),
    named=names,
    out=mostly("out.npy", st.sampled_from(OUTPUTS)),
    size=sizes,
    prompt=prompts,
    others=options,
)
def test_texts_are_encoded_or_refused(
    encoder: Path,
    file: tuple[str, bytes, int | None],
    named: str | None,
    out: str,
    size: str | None,
    prompt: list[str],
    others: list[str],
) -> None:
    with case("texts: encode"):
        texts_file, content, rows = _write_files(file)
        arguments = ["encode", str(encoder), named if named is not None else texts_file]
        arguments += ["--out", out, *prompt, *others]
        arguments += [] if size is None else ["--batch-size", size]
        outcome = run(arguments, writes=[out], stdin=content if named == "-" else b"")
        if outcome.status == 0:
            require_embeddings(Path(out), None if named is not None else rows)


@cases(70)
@example(file=(".txt", b"a river\n", 1), named=None, query="sea", top_k="9" * 20, others=[])
@given(
    file=files(),
    named=names,
    query=texts,
    top_k=sizes,
    others=options,
)
def test_texts_are_searched_or_refused(
    encoder: Path,
    file: tuple[str, bytes, int | None],
    named: str | None,
    query: str,
    top_k: str | None,
    others: list[str],
) -> None:
    with case("texts: search"):
        texts_file, content, rows = _write_files(file)
        arguments = ["search", str(encoder), named if named is not None else texts_file]
        arguments += [*others, *([] if top_k is None else ["--top-k", top_k]), "--", query]
        outcome = run(arguments, stdin=content if named == "-" else b"")
        if outcome.status == 0:
            hits = _hits(outcome)
            if named is None and rows is not None:
                assert len(hits) == min(rows, int(top_k or 5))


def _write_files(file: tuple[str, bytes, int | None]) -> tuple[str, bytes, int | None]:
    """Write the texts, and what the names of OUTPUTS and FILES stand for."""
    suffix, content, rows = file
    Path(f"texts{suffix}").write_bytes(content)
    Path("kept.npy").write_bytes(b"kept")
    Path("kept.parquet").write_bytes(b"kept")
    Path("folder.npy").mkdir()
    Path("folder.txt").mkdir()
    Path("link.npy").symlink_to(f"texts{suffix}")
    return f"texts{suffix}", content, rows


def _hits(outcome: Outcome) -> list[float]:
    """Return the scores of the hits that `search` printed, best first."""
    scores = [float(line.split()[0]) for line in outcome.stdout.split("\n") if line]
    assert scores == sorted(scores, reverse=True)
    assert all(-1.001 <= score <= 1.001 for score in scores)
    return scores
