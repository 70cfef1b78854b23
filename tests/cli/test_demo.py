import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
from mteb.abstasks import AbsTask
from sentence_transformers import SentenceTransformer

from llm2comp.cli.demo import run as demo
from llm2comp.data import catalog
from llm2comp.evaluation import baselines
from llm2comp.evaluation.store import Score
from llm2comp.model import released
from llm2comp.recipe import STAGE_FOLDERS, load_recipe, recipe_path
from llm2comp.training import pipeline, scoring
from llm2comp.training.run_folder import MODEL, SCORES, STAGE_LABELS, costs

LOG = """
{"stage": "pretext", "step": 10, "loss": 1.5}
{"stage": "pretext", "folder": "1-pretext", "done": true, "seconds": 61.4}
{"stage": "unsupervised", "folder": "2-unsupervised", "done": true, "seconds": 30.0}
"""


@pytest.fixture(scope="module")
def run_folder(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, with an untrained encoder in the place of each stage's."""
    out = tmp_path_factory.mktemp("runs") / "demo"
    for name in [*STAGE_FOLDERS.values(), MODEL]:
        baselines.build("weighted-mean", tiny_backbone).save_pretrained(str(out / name))
    (out / "run.jsonl").write_text(LOG.lstrip())
    shutil.copy(recipe_path("demo"), out / "recipe.yaml")
    return out


def scored(model: SentenceTransformer, tasks: Sequence[AbsTask]) -> list[Score]:
    assert model.encode(["a"]).shape == (1, 32)
    return row([task.metadata.name for task in tasks])


def row(tasks: Sequence[str]) -> list[Score]:
    return [Score(task, "cosine", 12.34, 1.0, 10, 10.0, 5, True) for task in tasks]


def test_costs_come_from_the_recipe_and_the_log(run_folder: Path) -> None:
    run = load_recipe(recipe_path("demo"), ["pretext.steps=10", "pretext.batch_size=200"])
    found = costs(run, run_folder)
    assert found["samples"]["after stage 1"] == "2,000"
    assert found["time"] == {"after stage 1": "61 s", "after UCL": "30 s"}


def test_the_demo_shows_table_searches_and_how_to_go_on(
    run_folder: Path,
    tiny_backbone: Path,
    tmp_path: Path,
    sentences: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(pipeline, "train", lambda recipe, out, plan: out / MODEL)
    monkeypatch.setattr(baselines, "backbone_folder", lambda *_, **__: tiny_backbone)
    fetched: list[str] = []
    monkeypatch.setattr(catalog, "fetch", fetched.append)
    monkeypatch.setattr(
        scoring.runner, "evaluate", lambda model, name, tasks, *_, **__: scored(model, tasks)
    )
    evaluation = load_recipe(recipe_path("demo")).evaluation
    release = tmp_path / "released-one"
    release.mkdir()
    recorded = [asdict(score) for score in row(evaluation.tasks)]
    (release / SCORES).write_text(json.dumps({"after SCL": recorded}))
    monkeypatch.setattr(released, "RELEASED", tmp_path)
    monkeypatch.setattr(catalog, "rows", lambda name: ({"text": text} for text in sentences))
    demo.run(run_folder)
    output = capsys.readouterr().out
    assert "Every stage begins from nothing" in output
    assert {"smollm2-135m", "boolq-pairs", "stsb-train"} <= set(fetched)
    table = [line for line in output.splitlines() if "12.3" in line]
    rows = [*evaluation.baselines, *STAGE_LABELS.values(), "released-one"]
    assert [line.partition("  ")[0] for line in table] == rows
    assert len(demo.QUERIES) == 3
    for query in demo.QUERIES:
        _, _, below = output.partition(f"{query}\n")
        for line in below.splitlines()[:2]:
            hit = re.fullmatch(r"  -?\d\.\d{3}  (\S.*)", line)
            assert hit, f"{query}: {line!r}"
            assert hit[1].rstrip("…") in " ".join(sentences)
        assert len(below.splitlines()) > 2
    report = run_folder / "report.html"
    assert f"{report}: open it" in output.replace("\n", "")
    page = report.read_text()
    assert " ".join(sentences[0].split()[:4]) in page
    assert re.findall(r"<tr><td>([^<]+)</td><td>12\.3", page) == rows  # as the table
    assert f"released-one: {demo.ABOUT_RELEASED}" in page
    python = output.partition("Use it\n")[2].partition("\nThis took")[0]
    exec(python.replace("print", "_ = "))  # what it tells a newcomer to type must run
