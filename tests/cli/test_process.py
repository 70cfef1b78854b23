"""The process of a command: any encoding, closed streams and pipes, standard input, outputs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from llm2comp.cli.app import app
from llm2comp.utils import tables

RUNNER = CliRunner()
TEXTS = [
    "今日は天気がいいので、公園まで歩きました。",
    "Zwei Cafés in Zürich",
    "\U0001f600 ☃ “quoted”",
]

# Runs `data list` with names that hold all of the texts, after a table with them.
PRINT = """
import sys
from llm2comp.__main__ import main
from llm2comp.data import catalog
from llm2comp.utils import tables
TEXT = "".join(map(chr, CODES))
ENTRY = catalog.entry("stsb")
def names():
    tables.show_cells([["model", "score"], [TEXT, "1.0"]])
    return [TEXT] * 2000
catalog.names = names
catalog.entry = lambda name: ENTRY
sys.argv = ["llm2comp", "data", "list"]
main()
"""


def shell(command: str, encoding: str = "utf-8", **environment: str) -> tuple[int, str, str]:
    """Run a command line with `llm2comp` in it; return status, standard output and error."""
    code = PRINT.replace("CODES", str([ord(character) for character in "".join(TEXTS)]))
    variables = os.environ | {"PRINT": code, "PYTHON": sys.executable} | environment
    variables.pop("PYTHONUNBUFFERED", None)  # buffered output is the harder case
    done = subprocess.run(["bash", "-c", command], capture_output=True, env=variables, timeout=300)
    return done.returncode, done.stdout.decode(encoding), done.stderr.decode(encoding)


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "cp437", "utf-8"])
def test_any_encoding_shows_what_it_can_and_escapes_the_rest(encoding: str) -> None:
    status, output, errors = shell(
        '"$PYTHON" -c "$PRINT"', encoding, PYTHONIOENCODING=encoding, LC_ALL="C"
    )
    assert (status, errors) == (0, "")
    shown = "".join(TEXTS).encode(encoding, "backslashreplace").decode(encoding)
    in_table, *in_lines = output.splitlines()[1:]
    assert in_table.startswith(shown)
    assert len(in_lines) == 2000
    assert all(line.startswith(shown) for line in in_lines)


def test_ascii_is_no_error() -> None:
    status, output, errors = shell('"$PYTHON" -c "$PRINT"', PYTHONIOENCODING="ascii", LC_ALL="C")
    assert (status, errors) == (0, "")
    assert TEXTS[0] in output  # Typer takes ASCII for a wrong setting and prints UTF-8


@pytest.mark.parametrize("reader", ["true", "head -1"])
def test_a_reader_that_has_gone_ends_the_command_quietly(reader: str) -> None:
    status, _, errors = shell(f'"$PYTHON" -c "$PRINT" | {reader}; exit ${{PIPESTATUS[0]}}')
    assert (status, errors) == (141, "")


@pytest.mark.parametrize(
    ("streams", "expected"),
    [(">&-", 0), ("2>&-", 0), ("<&-", 0), ("<&- >&- 2>&-", 0), (">/dev/full", 2)],
)
def test_streams_that_are_closed_or_full(streams: str, expected: int) -> None:
    status, output, errors = shell(f'"$PYTHON" -c "$PRINT" {streams}')
    assert status == expected
    said = "llm2comp: disk full: free some space and repeat the command, or move LLM2COMP_CACHE\n"
    assert errors == ("" if expected == 0 else said)
    assert (len(output) > 0) == (">" not in streams.replace("2>", ""))


def test_a_signal_that_the_parent_ignores_stays_ignored() -> None:
    """As under `nohup`."""
    code = (
        "import os, signal; from llm2comp.cli import process\n"
        "def hang_up(): os.kill(os.getpid(), signal.SIGHUP)\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "process.end_on_signals(); hang_up(); process.leave_signals(); hang_up()\n"
        "print('goes on')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "goes on\n", "")


def test_a_file_never_gets_what_is_printed_to_a_closed_stream(tmp_path: Path) -> None:
    code = (
        "import os, sys; from llm2comp.cli import process; process.prepare_streams();"
        f"file = open({str(tmp_path / 'file')!r}, 'w'); os.write(1, b'from a library');"
        "print('from Python'); os.system('echo from a child')"
    )
    subprocess.run(["bash", "-c", '"$0" -c "$1" >&- 2>&-', sys.executable, code], check=True)
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.usefixtures("empty_cache")
def test_standard_input_is_a_file_of_texts(encoder: Path, tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    for texts, out in ((file, "file"), ("-", "input")):
        command = ["encode", encoder, texts, "--out", tmp_path / f"{out}.npy"]
        result = RUNNER.invoke(app, [*map(str, command)], input=file.read_bytes())
        assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(np.load(tmp_path / "file.npy"), np.load(tmp_path / "input.npy"))
    search = [*map(str, ["search", encoder, "-"]), TEXTS[1], "--top-k", "1"]
    assert RUNNER.invoke(app, search, input=file.read_bytes()).stdout == f"1.000  {TEXTS[1]}\n"


@pytest.mark.parametrize(
    ("given", "said"),
    [(b"", "-: there are no texts in it"), (b"good\n\xff\xfe\n", "-:2: ")],
)
def test_bad_standard_input_is_one_line(
    given: bytes, said: str, encoder: Path, tmp_path: Path
) -> None:
    command = ["encode", encoder, "-", "--out", tmp_path / "x.npy", "--dtype", "float32"]
    result = RUNNER.invoke(app, [*map(str, command)], input=given)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith(f"llm2comp: {said}")
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "x.npy").exists()


def test_a_pipe_by_name_is_refused_because_it_is_read_more_than_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "texts.txt")
    command = ["encode", "no-such-encoder", str(tmp_path / "texts.txt"), "--out", "x.npy"]
    result = RUNNER.invoke(app, command)
    assert (result.exit_code, "- for standard input" in result.stderr) == (2, True)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with inputs under several names, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table({"text": TEXTS, "id": [1, 2, 3]}), "mine.parquet")
    pq.write_table(pa.table({"name": TEXTS}), "other.parquet")
    Path("notes.txt").write_text("my notes\n")
    Path("page.html").write_text("<html><title>mine</title></html>\n")
    Path("folder.npy").mkdir()
    Path("link.parquet").symlink_to("mine.parquet")
    Path("text.npy").symlink_to("linked.txt")
    Path("linked.txt").write_text("a text\n")
    Path("hard.parquet").hardlink_to("mine.parquet")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("encode absent mine.parquet --out mine.parquet", "it is the input mine.parquet"),
        ("encode absent mine.parquet --out ./mine.parquet", "it is the input mine.parquet"),
        ("encode absent mine.parquet --out link.parquet", "it is the input mine.parquet"),
        ("encode absent link.parquet --out mine.parquet", "it is the input link.parquet"),
        ("encode absent - --out text.npy", "it is a link to"),
        ("encode absent mine.parquet --out hard.parquet", "it is the input mine.parquet"),
        ("encode absent mine.parquet --out other.parquet", "a table of something else"),
        ("encode absent mine.parquet --out folder.npy", "--out folder.npy: it is a folder"),
        ("encode absent mine.parquet --out notes.txt/x.npy", "notes.txt is a file and not"),
        ("encode absent mine.parquet --out -", "not written to standard output"),
        ("encode absent mine.parquet --out /proc/x.npy", "/proc"),
        ("encode absent mine.parquet --out {long}.npy", "too long"),
        ("report absent --out notes.txt", "--out notes.txt: it is not a report"),
        ("report absent --out page.html", "--out page.html: it is not a report"),
        ("report absent --out folder.npy", "it is a folder"),
        ("report absent --out /dev/null", "it is a device or a pipe"),
        ("analyze absent --out notes.txt", "notes.txt is a file and not a folder"),
        ("evaluate absent --out notes.txt", "notes.txt is a file and not a folder"),
        ("export absent --to onnx --out notes.txt", "notes.txt exists and is not an export"),
        ("export absent --to onnx --out notes.txt/x", "notes.txt is a file and not a folder"),
        ("export absent --to last-token --out notes.txt", "notes.txt exists and is not an export"),
        ("export absent --to last-token --out notes.txt/x", "notes.txt is a file and not a folder"),
        (
            "export absent --to multi-vector --out notes.txt",
            "notes.txt exists and is not an export",
        ),
        ("train demo evaluation.tasks=[] --out notes.txt", "notes.txt is a file and not a folder"),
        ("study pretext --out notes.txt/x", "notes.txt is a file and not a folder"),
        ("demo --out notes.txt", "notes.txt is a file and not a folder"),
        ("report absent --out new.html --data blank", "the name of the data is blank"),
        ("search absent notes.txt blank", "the query is blank"),
        ("report absent --out new.html --query blank", "the query is blank"),
    ],
)
def test_an_output_that_cannot_be_is_refused_at_once(command: str, said: str, place: Path) -> None:
    if "onnx" in command:
        pytest.importorskip("onnxruntime")
    before = {path: path.stat().st_mtime_ns for path in place.iterdir()}
    words = command.format(long="x" * 300).split()
    result = RUNNER.invoke(app, [" " if word == "blank" else word for word in words])
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert result.stderr.startswith("llm2comp: ")
    assert len(result.stderr.splitlines()) == 1
    assert ".part" not in result.stderr
    assert {path: path.stat().st_mtime_ns for path in place.iterdir()} == before


@pytest.mark.usefixtures("empty_cache")
def test_own_outputs_may_be_replaced_and_a_link_stays_a_link(encoder: Path, place: Path) -> None:
    Path("to.npy").symlink_to("embeddings.npy")
    for out in ("embeddings.npy", "embeddings.npy", "to.npy", "e.parquet", "e.parquet"):
        result = RUNNER.invoke(app, ["encode", str(encoder), "mine.parquet", "--out", out])
        assert result.exit_code == 0, result.output
    assert Path("to.npy").is_symlink()
    assert pq.read_table("mine.parquet").column_names == ["text", "id"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("encode", "Missing argument 'MODEL'; see "),
        ("encode a b --out c.npy --batch 3", "No such option:? '?--batch"),
        ("encode a b --out c.npy --prompt passage", "'query', 'document'"),
        ("search a b c --top-k 0", "'--top-k'"),
        ("enocde", "No such command 'enocde'"),
        ("data lst", "No such command 'lst'"),
    ],
)
def test_a_wrong_call_is_one_line(command: str, said: str) -> None:
    result = RUNNER.invoke(app, command.split())
    assert result.exit_code == 2
    assert result.stderr.startswith("llm2comp: ")
    assert re.search(said, result.stderr)
    assert result.stderr.endswith(" --help\n")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("cache", ["notes.txt", "/proc/no"])
def test_a_cache_that_cannot_be_is_one_line(
    cache: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM2COMP_CACHE", cache)
    for command in ("data fetch boolq-passages", "evaluate absent"):
        result = RUNNER.invoke(app, command.split())
        assert result.exit_code == 2
        assert len(result.stderr.splitlines()) == 1
    assert "LLM2COMP_CACHE" in RUNNER.invoke(app, ["doctor"]).stdout


def test_a_table_in_a_file_is_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    row = ["llm2comp" * 20, *("0.123" for _ in range(30))]
    tables.show_cells([["model", *(f"column {i}" for i in range(30))], row])
    assert capsys.readouterr().out.splitlines()[1].split() == row
