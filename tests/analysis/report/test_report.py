import dataclasses
import io
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from sentence_transformers import SentenceTransformer

import llm2comp
from llm2comp import recipe
from llm2comp.analysis.reading import curves
from llm2comp.analysis.reading.capacity import Capacity, Point
from llm2comp.analysis.reading.texts import TextReading
from llm2comp.analysis.reading.write import as_dict
from llm2comp.analysis.report import gather, plots, write
from llm2comp.data.sample import Sample
from llm2comp.errors import UserError
from llm2comp.evaluation.store import ResultStore, Score, TaskResult
from llm2comp.inference.search import search_all
from llm2comp.model.lineage import Lineage
from llm2comp.training import pipeline, run_folder
from llm2comp.training.run_folder import read_events

CHROMIUM = shutil.which("chromium")
QUERIES = ("how do whales <b>breathe</b>", "old coins")
CAPACITY = Capacity(
    "after <stage> 1",
    "continuation",
    "news",
    0,
    ["a note"],
    [
        Point(
            length,
            k,
            {
                "nothing": [4.0, 4.2, 3.8],
                "last": [3.5] * 3,
                "memory": [4.0 - share, 4.2 - share, 3.8 - share],
                "full": [3.0, 3.2, 2.8],
            },
        )
        for k, shares in ((2, (0.6, 0.4)), (4, (0.8, 0.6)))
        for length, share in zip((16, 64), shares, strict=True)
    ],
)
"""Read with two k: half of the gap is closed up to 32 tokens, and at all lengths."""


class Longer(torch.nn.Module):
    """Gives each embedding another length."""

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        embeddings = features["sentence_embedding"]
        lengths = 1 + 10 * embeddings[:, :1].abs() / embeddings.norm(dim=1, keepdim=True)
        return features | {"sentence_embedding": embeddings * 7 * lengths}


@pytest.fixture(scope="module")
def run(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tiny"
    pipeline.train(recipe.load_recipe(tiny_recipe), out, Console(file=io.StringIO()))
    row = {"metric": "m", "seconds": 1, "texts": 1, "texts_per_second": 1, "samples": 1}
    rows = {
        name: [row | {"task": "STS17", "main_score": score, "quick": False}]
        for name, score in (("last-token", 40.0), ("after SCL", 70.5))
    }
    (out / "scores.json").write_text(json.dumps(rows))
    return out


@pytest.fixture(scope="module")
def page(run: Path, sentences: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [f"{text} <script>alert({i})</script> {i}" for i in range(5) for text in sentences]
    content = gather.gather([str(run)], Sample("texts", texts, [], len(texts)), QUERIES)
    out = tmp_path_factory.mktemp("report") / "report.html"
    write.write(dataclasses.replace(content, capacities=[CAPACITY]), out)
    return out


def test_the_page_is_one_file_with_everything_in_it(page: Path, run: Path) -> None:
    html = page.read_text()
    assert page.stat().st_size < 8e6
    own = html.replace(plots.script(), "")
    assert not re.findall(r'(?:src|href)\s*=\s*["\']?(?:https?:)?//', own)
    for wanted in ("after stage 1", "after UCL", "after SCL", "texts.txt", "40.0", "+30.5"):
        assert wanted in own
    assert "Training stages" in own
    assert len(re.findall('class="plotly-graph-div"', own)) == 3 * 2 + 1 + 3 + 1 + 4
    assert "all 40 texts of texts" in own
    # The first encoder is that of stage 1. Its memory is of three quarters of the text.
    assert "after stage 1 compresses" in own
    tokens = re.findall(r'<b style="background: rgba\((?:213, 94, 0|0, 114, 178), [^"]+', own)
    said = re.search(r"Memory of (\d+) tokens predicts (\d+) tokens after them", own)
    assert said is not None
    assert len(tokens) == int(said[2]) == -(-(int(said[1]) + int(said[2])) // 4)
    losses = re.findall(r'title="memory ([\d.]+), full text ([\d.]+), gap ([-+][\d.]+)"', own)
    assert len(losses) == len(tokens)
    for memory, full, gap in losses:
        assert float(memory) - float(full) == pytest.approx(float(gap), abs=0.011)
    written = re.search(r"<pre>(.*?)</pre>", own, re.DOTALL)
    assert written is not None
    assert "stage: supervised" in written[1]
    assert not list(page.parent.glob(".*"))
    assert (run / "recipe.yaml").exists()


def test_the_page_shows_how_much_a_memory_holds(page: Path) -> None:
    own = page.read_text().replace(plots.script(), "")
    assert "How much a memory holds" in own
    name = "after &lt;stage&gt; 1"
    assert (
        f"{name}, 2 memory tokens: closes less than half of the gap from 32 tokens on (95% "
        "interval: 32)."
    ) in own
    assert f"{name}, 4 memory tokens: closes half of the gap or more up to 64 tokens" in own
    assert "a note." in own
    assert "over 3 passages" in own
    for kind in curves.all_of([CAPACITY]).values():
        for title, plot in plots.capacity(kind):
            assert f"<h3>{title.replace('<', '&lt;').replace('>', '&gt;')}</h3>" in own
            assert ('"line":{"color":"#888","dash":"dot"}' in plot) == (kind.level is not None)


def test_a_capacity_that_was_measured_becomes_a_section(
    run: Path, sentences: list[str], tmp_path: Path
) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(sentences * 4) + "\n")
    folder, out = tmp_path / "capacity", tmp_path / "report.html"
    settings: dict[str, Any] = {"data": str(tmp_path / "texts.txt"), "texts": 30}
    with pytest.raises(UserError, match=r"capacity\.json: No such file"):
        llm2comp.report([run / "model"], out, capacity=folder, **settings)
    folder.mkdir()
    (folder / "capacity.json").write_text(json.dumps([as_dict(CAPACITY)]))
    llm2comp.report([run / "model"], out, capacity=folder, **settings)
    assert "2 memory tokens: closes less than half of the gap from 32" in out.read_text()
    llm2comp.report([run / "model"], out, **settings)
    assert "How much a memory holds" not in out.read_text()


def test_texts_and_queries_cannot_become_markup(page: Path) -> None:
    own = page.read_text().replace(plots.script(), "")
    assert "<script>alert(" not in own
    assert "how do whales &lt;b&gt;breathe" in own


def test_encoders_side_by_side(run: Path, sentences: list[str], tmp_path: Path) -> None:
    models = [str(run / "1-pretext"), str(run / "model")]
    sample = Sample("s", sentences * 4, [], 32)
    write.write(gather.gather(models, sample, ["whales"]), tmp_path / "r.html")
    own = (tmp_path / "r.html").read_text().replace(plots.script(), "")
    assert "There are no scores yet" in own
    assert "Training stages" not in own
    assert own.count("Lineage of") == 2
    with pytest.raises(UserError, match="is a run; report it alone"):
        gather.gather([str(run), models[0]], sample, ["whales"])


def test_searches_show_cosines_of_encoders_that_do_not_normalise(
    run: Path, sentences: list[str]
) -> None:
    model = llm2comp.load(str(run / "model"))
    longer = SentenceTransformer(modules=[*list(model)[:-1], Longer()])
    sample = Sample("s", sentences, [], 8)
    encoder = gather._encoder(longer, "longer", sample, ["whales"], None, 4)
    (found,) = encoder.neighbours
    ours = gather._encoder(model, "ours", sample, ["whales"], None, 4).neighbours[0]
    assert [text for _, text in found] == [text for _, text in ours]
    assert [cosine for cosine, _ in found] == pytest.approx([one for one, _ in ours], abs=1e-5)


@pytest.mark.parametrize("document", ["d: ", ""])
@pytest.mark.parametrize("pairs", [False, True])
def test_searches_are_those_of_the_command(
    document: str, pairs: bool, run: Path, sentences: list[str], tmp_path: Path
) -> None:
    model = llm2comp.load(str(run / "model"))
    model.prompts = {"query": "q: ", "document": document}
    texts = sentences[::-1] if pairs else sentences
    (tmp_path / "texts.txt").write_text("".join(f"{text}\n" for text in texts))
    queries = ["whales", "old coins", "interest rates"]
    sample = Sample("s", sentences, texts if pairs else [], 8)
    found = gather._encoder(model, "tiny", sample, queries, None, 4).neighbours
    wanted = search_all(model, tmp_path / "texts.txt", queries, gather.NEAREST)
    for ours, theirs in zip(found, wanted, strict=True):
        assert [text for _, text in ours] == [hit.text for hit in theirs]
        scores = [hit.score for hit in theirs]
        assert [cosine for cosine, _ in ours] == pytest.approx(scores, abs=1e-5)


def test_stored_scores_are_those_of_the_encoder_and_not_of_its_name(
    run: Path, empty_cache: Path
) -> None:
    name, store, lineage = str(run / "model"), ResultStore(), Lineage.read(run / "model")
    assert lineage is not None
    before = lineage.model_copy(update={"seed": lineage.seed + 1})  # before it was trained again

    def save(model: str, task: str, of: Lineage | None, value: float, *, quick: bool) -> None:
        score = Score(task, "cosine_spearman", value, 1.0, 1, 1.0, 1, quick=quick)
        store.save(TaskResult(model, score, "sts", "", {}, "", {}, of))

    save(name, "STS17", before, 10.0, quick=False)
    save(name, "STS17", lineage, 20.0, quick=True)
    save(name, "STSBenchmark", lineage, 30.0, quick=False)
    save(name, "STSBenchmark", lineage, 31.0, quick=True)
    save("of others", "STS17", None, 40.0, quick=False)
    save("of nobody", "STS17", None, 50.0, quick=False)
    encoders: Any = [
        SimpleNamespace(name=name, lineage=lineage),
        SimpleNamespace(name="of others", lineage=None),
    ]
    rows = gather._stored_scores(encoders)
    found = {row: {score.task: score.main_score for score in rows[row]} for row in rows}
    assert found == {name: {"STSBenchmark": 30.0, "STS17": 20.0}, "of others": {"STS17": 40.0}}


def test_a_stage_that_has_not_begun_has_no_plots(run: Path) -> None:
    events = run_folder.Run.read(run).events
    assert plots.curves(events, "pretext")
    assert plots.watch(events, "pretext")
    begun = [event for event in events if event["stage"] == "pretext"]
    assert plots.curves(begun, "supervised") is None
    assert plots.watch(begun, "supervised") is None


@pytest.mark.parametrize("count", [2, 5])
def test_a_few_texts_are_enough(
    count: int, run: Path, sentences: list[str], tmp_path: Path
) -> None:
    """There are fewer texts than colours on the map, and than neighbours per query."""
    sample = Sample("s", sentences[:count], [], count)
    write.write(gather.gather([str(run / "model")], sample, ["whales"]), tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert f"all {count} texts of s" in page
    assert page.count("<blockquote>") == min(count, gather.NEAREST)


def test_one_text_is_an_error(run: Path, sentences: list[str]) -> None:
    with pytest.raises(UserError, match="need at least two"):
        gather.gather([str(run / "model")], Sample("s", sentences[:1], [], 1), ["whales"])


def test_the_log_of_0_1_gives_the_same_plot(tmp_path: Path) -> None:
    def lines(matched: str, mismatched: str) -> list[str]:
        values = {matched: 3.0, mismatched: 3.5, "last_tokens": 3.2}
        event = {"stage": "pretext", "step": 10, "held_out": values}
        (tmp_path / "run.jsonl").write_text(json.dumps(event) + "\n")
        events = read_events(tmp_path)
        return re.findall(r'"name":"held out, [^"]+"', plots.curves(events, "pretext") or "")

    assert len(lines("own", "other")) == 3
    assert lines("own", "other") == lines("matched", "mismatched")


def test_a_damaged_run_is_named(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("*-*", "model"))
    file = tmp_path / "run" / "run.jsonl"
    broken = len(file.read_text().splitlines()) + 1
    with file.open("a") as log:
        log.write('{"stage": "pre')
    with pytest.raises(UserError, match=rf"run\.jsonl:{broken}: not JSON"):
        run_folder.Run.read(tmp_path / "run")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_browser_shows_it(page: Path, width: int, scheme: Any) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        problems: list[str] = []
        requests: list[str] = []
        tab.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(page.as_uri())
        tab.wait_for_selector(".plotly-graph-div .main-svg")
        assert not problems
        assert all(url.startswith(("file:", "data:", "blob:")) for url in requests)
        plots_wide = tab.eval_on_selector_all(
            ".plotly-graph-div", "all => all.map(one => one.getBoundingClientRect().right)"
        )
        assert len(plots_wide) == 15
        assert max(plots_wide) <= width
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(255, 255, 255)") == (scheme == "light")
        point = tab.locator(".plotly-graph-div").last.locator(".point").first
        point.scroll_into_view_if_needed()
        box = point.bounding_box()
        assert box is not None
        tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        shown = tab.wait_for_selector(".hoverlayer .hovertext", timeout=30_000)
        assert "<script>alert(" in shown.text_content()  # as text
        browser.close()


def test_the_page_names_the_rows_with_quick_scores() -> None:
    def row(quick: bool) -> list[Score]:
        return [Score("STS17", "cosine_spearman", 80.0, 1.0, 500, 500.0, 250, quick)]

    def said(**rows: list[Score]) -> str:
        return write._scores_note(SimpleNamespace(rows=rows, note="")).split(" Small")[0]

    assert said(one=row(True), other=row(True)) == "Quick versions of the tasks."
    assert said(one=row(False), other=row(False)) == "Whole tasks."
    assert said(one=row(False), other=row(True)) == "Whole tasks, but quick versions for other."


def test_a_report_says_why_a_memory_cannot_be_read(
    run: Path, sentences: list[str], tmp_path: Path
) -> None:
    """A folder alone does not say where its backbone is."""
    sample = Sample("s", sentences, [], 8)
    write.write(gather.gather([str(run / "1-pretext")], sample, ["whales"]), tmp_path / "r.html")
    assert "backbone tiny-llama, which cannot be had" in (tmp_path / "r.html").read_text()


def test_tokens_are_coloured_by_the_gap() -> None:
    text = TextReading(
        "a b c", 2, "a b", [" c", " d"], {"memory": [3.0, 1.0], "full": [1.0, 9.0]}, {}
    )
    reading = SimpleNamespace(texts=[text])
    assert write._tokens(reading) == [  # type: ignore[arg-type]
        (" c", "rgba(213, 94, 0, 0.30)", "memory 3.00, full text 1.00, gap +2.00"),
        (" d", "rgba(0, 114, 178, 0.60)", "memory 1.00, full text 9.00, gap -8.00"),
    ]
