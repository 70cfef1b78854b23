"""What arrives at the hub is the folder; what does not pass a check never leaves the machine."""

import json
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from stand_in import Hub
from typer.testing import CliRunner

import llm2comp
from llm2comp.cli.app import app
from llm2comp.errors import UserError
from llm2comp.utils.checksums import CALIBRATION, CHECKSUMS, require_unchanged, write_checksums

RUNNER = CliRunner()
REPO = "me/first"
OF_THE_HUB = {"README.md", CHECKSUMS, ".gitattributes"}
"""Files whose content on the hub is not that of the folder."""


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def refused(*arguments: str) -> str:
    """Return the line with which a push is refused."""
    result = RUNNER.invoke(app, ["push", *arguments])
    assert result.exit_code == 2, result.output + repr(result.exception)
    *_, line = result.stderr.splitlines()
    assert line.startswith("llm2comp: "), result.stderr
    assert "Traceback" not in result.output
    return line


def test_what_arrives_is_the_folder(hub: Hub, folder: Path, tmp_path: Path) -> None:
    before = files_of(folder)
    result = RUNNER.invoke(app, ["push", str(folder), REPO])
    assert result.exit_code == 0, result.output + repr(result.exception)
    arrived = hub.repositories[REPO].branches["main"]
    assert arrived.keys() == before.keys() | {".gitattributes"}
    for path in before.keys() - OF_THE_HUB:
        assert arrived[path] == before[path], path
    assert any(path.startswith("adapter/") for path in arrived)
    assert files_of(folder) == before
    assert hub.repositories[REPO].commits == [("main", "Upload tiny with llm2comp")]
    assert not hub.repositories[REPO].private
    assert result.stdout == f"{hub.url}/{REPO}/commit/{1:040x}\n"
    size = sum(len(content) for path, content in arrived.items())
    assert (
        f"uploading {len(before)} files, {size / 1e6:,.1f} MB, to {hub.url}/{REPO}" in result.stderr
    )
    assert f"{len(before['model.safetensors']):,} bytes  model.safetensors" in result.stderr

    copy = tmp_path / "copy"
    for path, content in arrived.items():
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        (copy / path).write_bytes(content)
    require_unchanged(copy)
    downloaded = SentenceTransformer(str(copy), device="cpu").encode(["A text.", ""])
    expected = SentenceTransformer(str(folder), device="cpu").encode(["A text.", ""])
    assert (downloaded == expected).all()


def test_the_card_names_the_model_on_the_hub(hub: Hub, folder: Path) -> None:
    (folder / "README.md").write_text(
        (folder / "README.md").read_text().replace("A text encoder that", "Mine. It is one that")
    )
    llm2comp.push(folder, REPO, revision="v2")
    text = hub.repositories[REPO].branches["v2"]["README.md"].decode()
    assert "Mine. It is one that" in text  # people may write into the card
    assert "path/to/this/folder" not in text
    first, second, _ = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert f'SentenceTransformer("{REPO}", revision="v2")' in first
    assert f'open(hf_hub_download("{REPO}", "llm2comp.json", revision="v2"))' in second
    for code in (first, second):
        compile(code, "card", "exec")
    data = ModelCard(text).data
    assert (data.license, data.library_name) == ("mit", "sentence-transformers")
    assert data.pipeline_tag == "sentence-similarity"


def test_files_of_the_encoder_before_are_deleted_in_the_same_commit(hub: Hub, folder: Path) -> None:
    llm2comp.push(folder, REPO)
    files = hub.repositories[REPO].branches["main"]
    mine = ("LICENSE", "figure.png", "LICENSE.txt", "NOTICE.txt", "eval/results.json")
    files |= dict.fromkeys(mine, b"mine")
    files |= {"model-00001-of-00002.safetensors": b"", "openvino/openvino_model.xml": b""}
    settings = ("vocab.txt", "merges.txt", "special_tokens_map.json")
    files |= dict.fromkeys((*settings, "9_Dense/config.json", "onnx/export.json"), b"{}")
    (folder / ".secret").write_text("hidden")
    (folder / CALIBRATION).write_bytes(b"")
    url = llm2comp.push(folder, REPO, message="More steps")
    assert url.endswith(f"{2:040x}")
    assert [message for _, message in hub.repositories[REPO].commits][1:] == ["More steps"]
    expected = files_of(folder).keys() | {".gitattributes", *mine}
    after = hub.repositories[REPO].branches["main"]
    assert after.keys() == expected - {".secret", CALIBRATION}


def test_a_branch_is_made_and_the_main_one_stays(hub: Hub, folder: Path) -> None:
    llm2comp.push(folder, REPO, revision="v2")
    llm2comp.push(folder, REPO, revision="v2")
    assert [branch for branch, _ in hub.repositories[REPO].commits] == ["v2", "v2"]
    assert hub.repositories[REPO].branches["main"].keys() == {".gitattributes"}


def test_private_is_never_public(hub: Hub, folder: Path) -> None:
    llm2comp.push(folder, "me/secret", private=True)
    llm2comp.push(folder, "me/secret", private=True)
    assert hub.repositories["me/secret"].private
    llm2comp.push(folder, REPO)
    line = refused(str(folder), REPO, "--private")
    assert "is there and is public" in line
    assert len(hub.repositories[REPO].commits) == 1


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (lambda f: (f / "config.json").write_text("{}"), ["config.json", "damaged or was edited"]),
        (lambda f: (f / "README.md").unlink(), ["README.md is missing"]),
        (
            lambda f: (f / "README.md").write_text("---\nlicense: [\n---\n"),
            ["README.md", "metadata", "mend"],
        ),
        (
            lambda f: (f / "README.md").write_text("---\nlicense: mit\n---\n`/home/me/runs/1`\n"),
            ["README.md:4: /home/me/runs/1 is a path"],
        ),
        (
            lambda f: (f / "notes.json").write_text('{\n"from": "C:\\\\Users\\\\me\\\\x"}'),
            ["notes.json:2: C:\\\\Users\\\\me\\\\x is a path"],
        ),
        (lambda f: (f / "llm2comp.json").unlink(), ["not an encoder folder of llm2comp"]),
        (lambda f: (f / "modules.json").unlink(), ["has no modules.json"]),
    ],
)
def test_a_folder_that_does_not_pass_is_not_sent(
    hub: Hub, folder: Path, damage: object, parts: list[str]
) -> None:
    damage(folder)  # type: ignore[operator]
    line = refused(str(folder), REPO)
    assert all(part in line for part in parts), line
    assert hub.requests == []


def test_other_embeddings_are_not_sent(hub: Hub, folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    changed = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in weights.items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    write_checksums(folder)
    assert "computes other embeddings" in refused(str(folder), REPO)
    broken = {name: torch.full_like(tensor, torch.nan) for name, tensor in weights.items()}
    save_file(broken, folder / "model.safetensors", metadata={"format": "pt"})
    write_checksums(folder)
    assert "computes other embeddings" in refused(str(folder), REPO)
    assert hub.requests == []


def test_what_is_no_encoder_folder_is_refused(hub: Hub, run: Path, tmp_path: Path) -> None:
    assert "is the folder of a run" in refused(str(run), REPO)
    assert "no such folder" in refused(str(tmp_path / "none"), REPO)
    assert "not an encoder folder" in refused(str(tmp_path), REPO)
    for repo in ("first", "me/first/x", "me/first:x", ""):
        assert "give OWNER/NAME" in refused(str(run / "model"), repo)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("route", "status", "message", "parts"),
    [
        ("repos/create", 401, "Invalid username", ["status 401", "hf auth login"]),
        ("repos/create", 403, "You don't have the rights", ["the rights", "right to write"]),
        ("repos/create", 404, "Not found", ["status 404", "check the owner"]),
        ("commit/main", 413, "Payload Too Large", ["refuses the size", "storage-limits"]),
        ("info/lfs", 403, "Private repository storage limit reached", ["refuses the size"]),
        ("commit/main", 412, "A commit has happened", ["status 412", "A commit has happened"]),
        ("validate-yaml", 400, "Bad", ["refuses it", "Invalid metadata in README.md"]),
    ],
)
def test_a_refusal_of_the_hub_is_one_line(
    hub: Hub, folder: Path, route: str, status: int, message: str, parts: list[str]
) -> None:
    hub.refused[route] = (status, message)
    line = refused(str(folder), REPO)
    assert all(part in line for part in [*parts, f"{REPO}: "]), line
    assert not any(repository.commits for repository in hub.repositories.values())


def test_without_a_token_or_a_network(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert "hf auth login" in refused(str(folder), REPO)
    hub.close()
    line = refused(str(folder), REPO)
    assert f"{hub.url} cannot be reached" in line
    assert "ConnectError" in line
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused(str(folder), REPO)
    assert hub.repositories == {}


def test_a_path_in_the_lineage_of_an_old_folder_is_found(hub: Hub, folder: Path) -> None:
    (folder / CHECKSUMS).unlink()  # an older version wrote none
    lineage = json.loads((folder / "llm2comp.json").read_text())
    lineage["backbone"]["name"] = "/mnt/disk/models/llama"
    (folder / "llm2comp.json").write_text(json.dumps(lineage, indent=2))
    with pytest.raises(UserError, match=r"llm2comp.json:\d+: /mnt/disk/models/llama is a path"):
        llm2comp.push(folder, REPO)


def test_a_card_without_a_licence_gets_that_of_the_lineage(hub: Hub, folder: Path) -> None:
    card = folder / "README.md"
    card.write_text(card.read_text().replace("license: mit\n", ""))
    url = RUNNER.invoke(app, ["push", str(folder), REPO])
    assert "the card has no licence" not in url.stderr  # the lineage has it
    data = ModelCard(hub.repositories[REPO].branches["main"]["README.md"].decode()).data
    assert data.license == "mit"
