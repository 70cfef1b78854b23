"""How a server with indexes starts, and how it ends although a search does not."""

import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
import torch
from running_server import wait_for
from typer.testing import CliRunner

import llm2comp
from llm2comp.cli.app import app
from llm2comp.errors import UserError
from llm2comp.inference.embed import embed
from llm2comp.inference.load import load
from llm2comp.model.folder.reference import TEXTS
from llm2comp.model.modules import MergeMemory
from llm2comp.serving.loading import load_all, named_indexes


def test_merging_is_refused_where_it_would_do_nothing(notes: Path) -> None:
    with pytest.raises(UserError, match="leave --merge out"):
        load_all({}, {"notes": str(notes)}, "float32", 0.5)
    with pytest.raises(UserError, match="leave --memory-tokens out"):
        load_all({}, {"notes": str(notes)}, "float32", None, 2)


def test_an_index_is_not_searched_with_merged_queries(
    folder: Path, sentences: list[str], tmp_path: Path
) -> None:
    pytest.importorskip("lancedb")
    alike = load(folder, "float32")
    memory = alike[0].model.get_input_embeddings().weight.data[-4:]
    memory[:] = memory[0] + torch.tensor([[0.0], [0.05], [0.2], [0.2]]) * (memory - memory[0])
    alike.save_pretrained(str(tmp_path / "alike"))
    (tmp_path / "a.txt").write_text("\n".join(sentences))
    idx = tmp_path / "idx"
    llm2comp.index(tmp_path / "alike", tmp_path / "a.txt", idx, dtype="float32")
    models, indexes = {"m": str(tmp_path / "alike")}, {"a": str(idx), "b": str(idx)}
    encoders, served = load_all(models, indexes, "float32", 0.95)
    assert list(encoders) == ["m", "m, unmerged"]
    merged, plain = (embed(one, list(TEXTS), 8, "query") for one in encoders.values())
    cosines = (merged * plain).sum(1)
    assert 0.99 < min(cosines) < 0.9999  # so near that the index would take it
    query = TEXTS[cosines.argmin()]
    wanted = llm2comp.open_index(idx, dtype="float32").search(query)
    for one in served:
        assert one.model == "m, unmerged"
        assert not [part for part in one.index.encoder if isinstance(part, MergeMemory)]
        found = one.index.search(query)
        assert [(hit.id, hit.score) for hit in found] == [(hit.id, hit.score) for hit in wanted]


@pytest.mark.parametrize("signals", [1, 2])
def test_a_search_that_does_not_end_does_not_keep_the_server(
    folder: Path, notes: Path, tmp_path: Path, signals: int
) -> None:
    script = tmp_path / "serve.py"
    script.write_text(
        "import logging, sys, time\n"
        "from llm2comp.retrieval.index import Index\n"
        "from llm2comp.serving.server import serve\n"
        "from llm2comp.serving.settings import Limits\n"
        "logging.getLogger('llm2comp').setLevel(logging.INFO)\n"
        "Index.find = lambda *_, **__: time.sleep(300)\n"
        "limits = Limits(seconds=float(sys.argv[3]))\n"
        "serve([f'tiny={sys.argv[1]}'], [sys.argv[2]], '127.0.0.1', 0, (), limits,\n"
        "      dtype='float32', merge_threshold=None, batch_size=32)\n"
    )
    seconds = {1: 2, 2: 200}[signals]
    command = [sys.executable, str(script), str(folder), str(notes), str(seconds)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = next(line for line in process.stderr if '"serving"' in line)
            url = f"http://{json.loads(said)['addresses'][0]}"
            with ThreadPoolExecutor(1) as pool:
                asked = pool.submit(
                    requests.post, f"{url}/search", json={"query": "a", "by": "text"}, timeout=60
                )
                wait_for(lambda: "waiting_searches 1" in requests.get(f"{url}/metrics").text)
                process.send_signal(signal.SIGTERM)
                if signals == 2:  # only when the first was handled: two that wait become one
                    wait_for(lambda: requests.get(f"{url}/ready", timeout=10).status_code == 503)
                    process.send_signal(signal.SIGTERM)
                assert process.wait(60) == 1
                asked.exception()
        finally:
            process.kill()


def test_the_name_of_an_index_has_no_slash(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has a slash; give NAME="):
        named_indexes([f"a/b={tmp_path}"])


def test_names_of_indexes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert named_indexes(["runs/notes", "mine=runs/notes", "."]) == {
        "notes": "runs/notes",
        "mine": "runs/notes",
        tmp_path.name: ".",
    }
    with pytest.raises(UserError, match="two are named notes; give one another name: NAME=b/notes"):
        named_indexes(["a/notes", "b/notes"])


def test_mistakes_at_the_start_are_one_line(folder: Path, tmp_path: Path) -> None:
    for arguments, says in (
        ([], "give MODEL, or --index DIR"),
        (["--index", tmp_path], f"{tmp_path}: holds no index"),
        ([folder, "--index", tmp_path / "absent"], "holds no index"),
    ):
        done = CliRunner().invoke(app, ["serve", *map(str, arguments), "--port", "0"])
        assert done.exit_code == 2
        assert says in done.output.splitlines()[-1]
