"""Where results come from: sessions in `results.json`, and lines in `results.md`."""

import json
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from run_study import edit, go

from llm2comp.training import pipeline
from llm2comp.training.study import provenance, results
from llm2comp.training.study.provenance import Session
from llm2comp.version import __version__


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.skipif(not shutil.which("git"), reason="there is no git")
def test_the_commit_of_a_checkout_and_whether_its_package_has_changed(tmp_path: Path) -> None:
    assert provenance.commit(tmp_path) == ""  # an installed package
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "module.py").write_text("a = 1\n")
    git(tmp_path, "init", "-q")
    assert provenance.commit(tmp_path) == ""  # no commit yet
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    head = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "results.json").write_text("{}")  # is not code
    assert provenance.commit(tmp_path) == head
    (tmp_path / "src" / "module.py").write_text("a = 2\n")
    assert provenance.commit(tmp_path) == f"{head}+"


def test_each_call_that_works_is_a_session(
    study_file: Path, tmp_path: Path, sets: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(study_file, tuning=None, seeds=[0])
    out = tmp_path / "study"
    monkeypatch.setattr("sys.argv", ["/somewhere/llm2comp", "study", "a b.yaml"])
    train = pipeline.train

    def fail_once(recipe, folder, console):  # noqa: ANN001, ANN202
        if folder.name == "mntp-seed0":
            raise RuntimeError("once")
        return train(recipe, folder, console)

    before = provenance.now()
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "train", fail_once)
        go(study_file, out)
    found = go(study_file, out)
    assert go(study_file, out).sessions == found.sessions  # it had nothing to do
    assert [session.names for session in found.sessions] == [
        ["ctkd-seed0", "mntp-seed0", "last-token"],
        ["mntp-seed0"],
    ]
    for session in found.sessions:
        assert session.command == "llm2comp study 'a b.yaml'"
        assert session.version == __version__
        assert session.cores == (psutil.cpu_count(logical=False) or psutil.cpu_count())
        assert session.threads == 1
        assert before <= session.start <= session.end <= provenance.now()
    assert results.read(out, "tiny").sessions == found.sessions
    text = (out / "results.md").read_text()
    assert "- Command: `llm2comp study 'a b.yaml'`\n- Seeds: 0\n" in text
    assert "hours of training and scoring in 2 calls\n" in text
    assert "earlier version" not in text


def test_the_lines_sum_up_all_sessions() -> None:
    start = datetime(2026, 1, 1, 22, 0, tzinfo=UTC)
    first = Session("c", "1", "abc", "P", 2, 1, start, start + timedelta(hours=1.5), ["a"])
    later = start + timedelta(hours=10)
    second = Session("c", "1", "def+", "P", 2, 1, later, later + timedelta(hours=2), ["b"])
    lines = provenance.describe([first, second], [1, 0, 1], ["bfloat16", ""], {"a", "b", "old"})
    assert lines == [
        "Command: `c`",
        "Seeds: 0, 1",
        "Code: llm2comp 1, commit abc; llm2comp 1, commit def+",
        "Machine: P, 2 cores, 1 torch threads; bfloat16",
        "Time: 2026-01-01 22:00 to 2026-01-02 10:00 UTC, 3.5 hours of training and scoring in 2 "
        "calls",
        "Not covered by these lines, because an earlier version ran them: old",
    ]


def test_a_folder_of_an_earlier_version_says_what_is_not_known(
    study_file: Path, tmp_path: Path, sets: object
) -> None:
    edit(study_file, tuning=None, seeds=[0], settings={"CTKD": []})
    out = tmp_path / "study"
    go(study_file, out)
    written = json.loads((out / "results.json").read_text())
    del written["sessions"]
    written["baselines"] = {}
    (out / "results.json").write_text(json.dumps(written))
    go(study_file, out)
    assert "because an earlier version ran them: ctkd-seed0\n" in (out / "results.md").read_text()
