import errno
import gc
import io
import subprocess
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from safetensors import SafetensorError
from typer.testing import CliRunner

from llm2comp.cli import doctor
from llm2comp.cli.app import app, explain
from llm2comp.cli.shared import preload
from llm2comp.data import catalog
from llm2comp.errors import UserError
from llm2comp.evaluation import baselines
from llm2comp.training import pipeline

RUNNER = CliRunner()
GROUP: Any = typer.main.get_command(app)
COMMANDS = sorted(GROUP.commands.keys() - {"data"})
COMMANDS += [f"data {name}" for name in sorted(GROUP.commands["data"].commands)]


@pytest.fixture(scope="module")
def encoder(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "last-token"
    baselines.build("last-token", tiny_backbone).save_pretrained(str(folder))
    return folder


@pytest.fixture
def texts(tmp_path: Path, sentences: list[str]) -> Path:
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(sentences) + "\n")
    return file


def one_line(text: str) -> str:
    """Return the line of the error; only progress bars of libraries may come before it."""
    *bars, line = [part for part in text.splitlines() if part.strip()]
    assert all(bar.startswith("Loading weights") for bar in bars)
    assert line.startswith("llm2comp: ")
    return line


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str) -> None:
    result = RUNNER.invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert f"llm2comp {command}" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--help"], "Examples:"),
        (["encode", "encoder", "missing.txt", "--out", "embeddings.npy"], "cannot be read"),
        (
            ["encode", "encoder", __file__, "--out", "embeddings.doc"],
            "are written to .npy, .npz or",
        ),
        (["search", "encoder", "missing.txt", "a query"], "cannot be read"),
    ],
    ids=["help", "missing file", "unknown kind", "search"],
)
def test_a_call_that_needs_no_model_imports_nothing_heavy(arguments: list[str], said: str) -> None:
    code = (
        f"import sys; from llm2comp.cli.app import app; app({arguments}, standalone_mode=False);"
        "print(sorted({'torch', 'transformers', 'datasets', 'mteb'} & set(sys.modules)))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout.endswith("[]\n")
    assert said in output.stdout + output.stderr


def test_the_garbage_collector_is_off_while_a_command_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "heavy_module.py").write_text("import gc\ncollecting = gc.isenabled()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    preload("heavy_module")
    assert not sys.modules.pop("heavy_module").collecting
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0


def test_the_garbage_collector_is_on_again_when_an_import_fails() -> None:
    with pytest.raises(ImportError):
        preload("no.such.module")
    assert gc.isenabled()


@pytest.mark.usefixtures("empty_cache", "either_processor")
def test_encode_writes_one_embedding_per_text(encoder: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "embeddings.npy"
    result = RUNNER.invoke(app, ["encode", str(encoder), str(texts), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert np.load(out).shape == (8, 32)
    assert "8 embeddings" in result.output
    assert f"{encoder}: " in result.stderr  # and the precision


@pytest.mark.usefixtures("empty_cache", "either_processor")
def test_search_finds_an_identical_text_first(
    encoder: Path, texts: Path, sentences: list[str]
) -> None:
    command = ["search", str(encoder), str(texts), sentences[5], "--top-k", "2"]
    result = RUNNER.invoke(app, command)
    assert result.exit_code == 0, result.output
    first, second = result.stdout.splitlines()
    assert first == f"1.000  {sentences[5]}"
    assert second[6:] in f" {' '.join(sentences)}"


@pytest.mark.usefixtures("either_processor")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "absent.yaml", "--out", "run"], "absent.yaml: no such file"),
        (["train", "demo", "pretext.steos=1", "--out", "run"], "did you mean 'steps'"),
        (["encode", "{encoder}", "absent.txt", "--out", "x.npy"], "absent.txt: cannot be read"),
        (["encode", "{encoder}", "{texts}", "--out", "x.csv"], "x.csv"),
        (["search", "{encoder}", "absent.txt", "whales"], "absent.txt: cannot be read"),
        (["evaluate"], "name a model, or a --baseline"),
        (["evaluate", "{encoder}", "--tasks", "STS99"], "unknown task 'STS99'"),
        (["evaluate", "--baseline", "first-token", "--backbone", "{backbone}"], "first-token"),
        (["data", "fetch", "boolq-passage"], "did you mean 'boolq-passages'"),
    ],
)
def test_a_mistake_prints_one_line_and_exits_with_2(
    arguments: list[str],
    message: str,
    encoder: Path,
    tiny_backbone: Path,
    texts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    filled = [
        argument.format(encoder=encoder, texts=texts, backbone=tiny_backbone)
        for argument in arguments
    ]
    result = RUNNER.invoke(app, filled)
    assert result.exit_code == 2
    assert message in one_line(result.stderr)
    assert sorted(tmp_path.iterdir()) == before


def test_overrides_and_bad_rows_reach_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def train(run: object, out: Path) -> Path:
        seen["run"], seen["out"] = run, out
        return out / "model"

    monkeypatch.setattr(pipeline, "train", train)
    command = ["train", "demo", "seed=7", "evaluation.tasks=[]", "--on-bad-row", "skip"]
    result = RUNNER.invoke(app, [*command, "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    assert (seen["run"].seed, seen["run"].on_bad_row) == (7, "skip")
    assert f"SentenceTransformer('{tmp_path / 'run' / 'model'}')" in result.stdout


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UserError("fix it"), 2, "fix it"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "disk full"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.txt"), 2, "a.txt: No such file"),
    ],
)
def test_errors_become_a_line_and_a_status(
    error: BaseException, status: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: str) -> Path:
        raise error

    monkeypatch.setattr(catalog, "fetch", fail)
    result = RUNNER.invoke(app, ["data", "fetch", "boolq-passages"])
    assert result.exit_code == status
    assert message in one_line(result.stderr)


def test_a_bug_or_debugging_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> Path:
        raise {"ours": ZeroDivisionError("x"), "theirs": UserError("y")}[name]

    monkeypatch.setattr(catalog, "fetch", fail)
    fetch = ["data", "fetch"]
    assert isinstance(RUNNER.invoke(app, [*fetch, "ours"]).exception, ZeroDivisionError)
    monkeypatch.setenv("LLM2COMP_DEBUG", "1")
    assert isinstance(RUNNER.invoke(app, [*fetch, "theirs"]).exception, UserError)


def test_a_mistake_is_found_inside_a_wrapping_exception() -> None:
    wrapper = RuntimeError("while generating the data set")
    wrapper.__cause__ = UserError("texts.jsonl:3: broken JSON")
    assert explain(wrapper) == "texts.jsonl:3: broken JSON"
    assert explain(ValueError("ours")) is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's always-full device")
@pytest.mark.parametrize(
    "write",
    [
        lambda: Path("/dev/full").write_text("x"),
        lambda: torch.save(torch.ones(1000), "/dev/full"),
    ],
    ids=["python", "torch"],
)
def test_every_writer_s_full_disk_is_recognised(write: object) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 (each writer has its own)
        write()  # type: ignore[operator]
    assert "disk full" in str(explain(caught.value))


def test_safetensors_full_disk_is_recognised() -> None:
    # Its message as seen on a full tmpfs; its writer refuses /dev/full for another reason.
    seen = "Error while serializing: I/O error: No space left on device (os error 28)"
    assert "disk full" in str(explain(SafetensorError(seen)))


def test_doctor_names_each_problem_and_its_remedy(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "no-such-package"))
    result = RUNNER.invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "wrong  no-such-package" in result.stdout
    assert "-> pip install no-such-package" in result.stdout
    assert str(empty_cache) in result.stdout
    assert version("torch") in result.stdout


def test_doctor_says_whether_bfloat16_is_native(either_processor: bool) -> None:
    (finding,) = [one for one in doctor.examine() if one.name == "bfloat16"]
    assert finding.status == ("ok" if either_processor else "note")
    assert ("not native" in finding.value) != either_processor


def test_doctor_does_not_wait_for_a_silent_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(doctor, "HUB_SECONDS", 0.2)
    silent = threading.Event()
    monkeypatch.setattr(
        doctor.urllib.request, "urlopen", lambda *_, **__: io.BytesIO(bytes(silent.wait(60)))
    )
    start = time.monotonic()
    finding = doctor.examine()[-1]
    assert (finding.name, finding.status) == ("hub", "note")
    assert time.monotonic() - start < 30
    silent.set()


@pytest.mark.usefixtures("empty_cache", "either_processor")
def test_evaluate_shows_one_row_per_model(
    encoder: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = [
        dict(split="test", file="track5", score=str(i % 6), sentence1=f"a {i}", sentence2=f"b {i}")
        for i in range(12)
    ]
    monkeypatch.setattr(catalog, "rows", lambda name: iter(rows if name == "stsb" else []))
    baseline = ["--baseline", "prompteol", "--backbone", str(tiny_backbone)]
    scores = tmp_path / "scores"
    command = ["evaluate", str(encoder), *baseline, "--tasks", "STS17", "--out", str(scores)]
    result = RUNNER.invoke(app, command)
    assert result.exit_code == 0, result.output
    heading, *body = [line.split() for line in result.stdout.splitlines() if line.strip()][-3:]
    assert heading == ["model", "STS17", "mean"]
    assert body[0][:3] == ["prompteol", "of", "tiny-llama"]
    assert len(list(scores.rglob("STS17*.json"))) == 2
    for name in (encoder, "prompteol of tiny-llama"):
        assert any(line.startswith(f"{name}: ") for line in result.stderr.splitlines())
