"""The files under deploy/ parse, and `llm2comp serve` accepts their commands."""

import configparser
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from llm2comp.cli.app import app
from llm2comp.serving import server, settings

DEPLOY = Path(__file__).parents[2] / "deploy"


def of_dockerfile() -> list[str]:
    text = (DEPLOY / "Dockerfile").read_text()
    entry, command = (
        json.loads(re.search(rf"^{name} (\[.*\])$", text, re.MULTILINE)[1])  # type: ignore[index]
        for name in ("ENTRYPOINT", "CMD")
    )
    return [*entry, *command]


def of_compose() -> list[str]:
    (service,) = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"].values()
    assert service["healthcheck"]["test"][0] == "CMD"
    return ["llm2comp", *service["command"]]


def of_unit() -> list[str]:
    unit = configparser.RawConfigParser()
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(DEPLOY / "llm2comp.service")
    return shlex.split(unit["Service"]["ExecStart"])


@pytest.mark.parametrize("command_of", [of_dockerfile, of_compose, of_unit])
def test_its_command_is_accepted(
    command_of: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    program, *arguments = command_of()
    assert Path(program).name == "llm2comp"
    assert arguments[0] == "serve"
    served: list[Any] = []
    monkeypatch.setattr(server, "serve", lambda models, *_, **__: served.extend(models))
    monkeypatch.setattr(settings, "read_tokens", lambda _: (b"token",))
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert served == ["smollm2-135m-llm2comp"]


def test_what_the_dockerfile_copies_is_there_and_not_ignored() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    copied = [
        name
        for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE)
        for name in line.split()[:-1]
    ]
    ignored = (DEPLOY.parent / ".dockerignore").read_text().splitlines()
    for name in copied:
        assert (DEPLOY.parent / name).exists(), name
        assert f"!{name}" in ignored, name
