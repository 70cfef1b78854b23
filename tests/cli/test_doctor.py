"""What `llm2comp doctor` says of a machine that lacks something, and of the hub."""

import io
import urllib.error
from email.message import Message
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from llm2comp.cli import doctor
from llm2comp.cli.app import app

SCARCE = {"cores": "note", "memory": "note", "disk": "wrong", "npm": "note"}


def pretend(
    monkeypatch: pytest.MonkeyPatch, *, memory: float, disk: float, threads: int, npm: str | None
) -> None:
    """Let a machine have so much."""
    found = SimpleNamespace(available=memory, total=64e9)
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: found)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=disk))
    monkeypatch.setattr(doctor.shutil, "which", lambda _: npm)
    monkeypatch.setattr(doctor.torch, "get_num_threads", lambda: threads)


@pytest.mark.usefixtures("empty_cache")
def test_doctor_says_what_is_scarce_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, memory=1e9, disk=1e9, threads=10_000, npm=None)
    found = {one.name: one for one in doctor.examine()}
    assert {name: found[name].status for name in SCARCE} == SCARCE
    assert "1.0 GB free of 64.0 GB" in found["memory"].value
    assert "free 3 GB" in found["disk"].remedy
    assert "OMP_NUM_THREADS=" in found["cores"].remedy
    assert "Node.js" in found["npm"].remedy
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert all(f"-> {found[name].remedy}" in result.stdout for name in SCARCE)


@pytest.mark.usefixtures("empty_cache")
def test_a_machine_that_has_enough_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, memory=64e9, disk=1e12, threads=1, npm="/usr/bin/npm")
    found = {one.name: one for one in doctor.examine()}
    assert {found[name].status for name in SCARCE} == {"ok"}
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 0


@pytest.mark.parametrize("answer", ["page", "error status"])
def test_any_answer_of_the_hub_is_one(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def urlopen(url: str, timeout: float) -> Any:
        assert timeout == doctor.HUB_SECONDS
        if answer == "error status":
            raise urllib.error.HTTPError(url, 403, "Forbidden", Message(), None)
        return io.BytesIO()

    monkeypatch.setattr(doctor.hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(doctor.urllib.request, "urlopen", urlopen)
    assert doctor._hub() == doctor.Finding("hub", "ok", "reachable")


def test_a_hub_that_cannot_be_reached_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def urlopen(url: str, timeout: float) -> Any:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(doctor.hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(doctor, "HUB_SECONDS", 0.2)
    monkeypatch.setattr(doctor.urllib.request, "urlopen", urlopen)
    assert doctor._hub().status == "note"
