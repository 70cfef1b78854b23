"""Every code block of the README, the tutorial and the guides runs, from top to bottom of its page.

Tiny stand-ins serve the real names. Blocks that need what a test does not have (pip, make, the hub,
hours) carry ``no-test``.
"""

import re
import shlex
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from llm2comp.cli.app import app
from llm2comp.evaluation import checked_export
from llm2comp.recipe import Recipe
from llm2comp.training.study.plan import Study

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN = [
    page for page in PAGES if page.name == "README.md" or page.parent.name in ("start", "guides")
]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
WITHOUT_BLOCKS = {
    "check-gpu.md",
    "fewer-memory-tokens.md",
    "many-devices.md",
    "memory.md",
    "serve.md",
    "when-a-run-goes-wrong.md",
}
"""Pages of which nothing can run here, or that show output alone."""
HEREDOC = re.compile(r"<<'(\w+)'")
SHELL = re.compile(r"[|>;&$]")


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Yield the language and the text of each block that is to run."""
    for info, text in FENCE.findall(page.read_text(encoding="utf-8")):
        words = re.findall(r"[\w-]+", info)
        if words and "no-test" not in words:
            yield words[0], text


def commands(block: str) -> Iterator[str]:
    """Yield the commands of a block of shell, each with its here-document or continued lines."""
    lines = iter(block.splitlines())
    for line in lines:
        command = line
        while command.endswith("\\"):
            command = command[:-1] + next(lines)
        if marker := HEREDOC.search(line):
            for following in lines:
                command += "\n" + following
                if following == marker[1]:
                    break
        if command.strip() and not command.lstrip().startswith("#"):
            yield command


def run_shell(command: str) -> None:
    """Run a command; those of llm2comp within this process, because each import takes seconds."""
    plain = re.sub(r"\s#.*$", "", command)
    if plain.startswith("llm2comp ") and not SHELL.search(plain):
        arguments = shlex.split(plain)[1:]
        result = CliRunner().invoke(app, arguments)
        told = result.output + repr(result.exception)
        # doctor reports what is wrong with the machine by its exit status.
        assert result.exit_code == 0 or arguments == ["doctor"], f"{command}\n{told}"
        return
    done = subprocess.run(["bash", "-euc", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_run(
    page: Path, stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if page.stem == "export" and not (find_spec("onnx") and find_spec("openvino")):
        pytest.skip("the back ends are not installed")
    if page.name in ("index.md", "late-interaction.md") and not find_spec("lancedb"):
        pytest.skip("LanceDB is not installed")
    monkeypatch.setenv("LLM2COMP_CACHE", str(stand_ins))
    # The stand-ins score by chance, so rounding to 8 bits moves their scores by points.
    monkeypatch.setattr(checked_export, "LOSS", 100.0)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    ran = 0
    for language, text in blocks(page):
        if language == "bash":
            for command in commands(text):
                run_shell(command)
        elif language == "python":
            exec(compile(text, str(page), "exec"), names)
        elif language != "yaml":
            assert language == "text", f"{page}: no one runs a block of {language!r}"
            continue
        ran += 1
    assert (ran == 0) == (page.name in WITHOUT_BLOCKS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_calls_a_recipe_or_a_study_is_one(page: Path) -> None:
    for language, text in blocks(page):
        written = re.findall(r"cat > \S+\.yaml <<'EOF'\n(.*?)\nEOF", text, re.DOTALL)
        for part in [text] if language == "yaml" else written:
            content = yaml.safe_load(part)
            if not isinstance(content, dict) or "name" not in content:
                continue
            (Study if "settings" in content else Recipe).model_validate(content)
