"""The page in a real browser: what it shows, how it is used by keyboard, and what axe-core says."""

import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running_server import Running
from sentence_transformers import SentenceTransformer

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
Start = Callable[..., Running]
TEXTS = [
    "Whales come to the surface to breathe.",
    "The museum keeps Roman coins.",
    "<script>document.title = 'broken'</script>",
    "Bread is baked at night.",
    "Dolphins are mammals, and breathe air.",
]
QUERY = "how do whales breathe"
DROP = """([bytes, name, type]) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], name, { type }));
  const options = { dataTransfer: data, bubbles: true, cancelable: true };
  document.getElementById("texts").dispatchEvent(new DragEvent("drop", options));
}"""


class Tab:
    """A tab of a browser, and everything that went wrong in it.

    Args:
        page: of playwright.
        url: of the server.
    """

    def __init__(self, page: Any, url: str) -> None:
        self.page = page
        self.problems: list[str] = []
        self.requests: list[str] = []
        page.set_default_timeout(15_000)
        page.on("console", lambda m: self.problems.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(url)

    def compare(self, texts: list[str], query: str = "") -> None:
        """Fill the form, send it by keyboard, and wait for the result."""
        self.page.fill("#texts", "\n".join(texts))
        self.page.fill("#query", query)
        self.page.press("#texts", "Control+Enter")
        expect(self.page.locator("#status")).to_contain_text("are")

    def said(self) -> str:
        """Return the problem that is shown."""
        expect(self.page.locator("#problem")).not_to_be_empty()
        return str(self.page.inner_text("#problem"))

    def cells(self, place: str) -> list[list[float]]:
        """Return the numbers of a matrix."""
        rows = self.page.eval_on_selector_all(
            f"{place} tbody tr",
            "rows => rows.map(row => [...row.querySelectorAll('td')].map(one => one.textContent))",
        )
        return [[float(one) for one in row] for row in rows]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Any) -> Callable[..., Any]:
    """Open the page of a server in a fresh context, whose storage is empty."""

    @contextmanager
    def open_page(running: Running, width: int = 1280, scheme: Any = "light") -> Iterator[Tab]:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        yield Tab(context.new_page(), f"{running.url}/")
        context.close()

    return open_page


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core."""
    folder = tmp_path_factory.mktemp("axe")
    try:
        command = ["npm", "pack", "axe-core@4.14.1", "--silent"]
        subprocess.run(command, cwd=folder, check=True, timeout=60, capture_output=True)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("axe-core cannot be had from npm")
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        member = archive.extractfile("package/axe.min.js")
        assert member is not None
        return member.read().decode()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_it_shows_what_the_model_says(
    width: int,
    scheme: str,
    server: Running,
    loaded: SentenceTransformer,
    visit: Callable[..., Any],
) -> None:
    with visit(server, width, scheme) as tab:
        page = tab.page
        page.wait_for_selector("#memory-form:not([hidden])")
        tab.compare(TEXTS, QUERY)
        vectors = loaded.encode_document(TEXTS, normalize_embeddings=True)
        query = loaded.encode_query(QUERY, normalize_embeddings=True)

        order = np.argsort(-vectors @ query)
        shown = page.locator("#neighbours li").all_text_contents()
        assert shown == [f"{vectors[i] @ query:.3f}{TEXTS[i]}" for i in order]
        np.testing.assert_allclose(tab.cells("#matrix"), vectors @ vectors.T, atol=0.00501)

        centred = vectors - vectors.mean(0)
        left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
        expected = np.abs(left * sizes)[:, :2]
        page.click("summary")
        np.testing.assert_allclose(np.abs(tab.cells("#map-table")), expected, atol=0.00101)
        share = 100 * sizes[0] ** 2 / (sizes**2).sum()
        assert f"horizontal axis has {share:.1f} %" in page.inner_text("#map-note")
        assert page.locator("#map circle").count() == len(TEXTS)

        page.hover("#matrix tbody tr:nth-child(2) td:nth-child(2)")
        assert "Whales" in page.inner_text("#matrix-value")
        page.locator("#map circle").nth(2).hover(force=True)
        assert "<script>" in page.inner_text("#map-value")
        assert page.title() == "Compare texts · llm2comp"
        assert "ms" in page.inner_text("#timings")

        page.click("#look")
        page.wait_for_selector("#memory:not([hidden])")
        body = {"model": "tiny", "text": TEXTS[0], "input_type": "document"}
        told = server.post("/memory-tokens", json=body).json()
        np.testing.assert_allclose(tab.cells("#cosines"), told["cosines"], atol=0.00501)
        for which in (0, 3):
            page.select_option("#which", str(which))
            shares = page.eval_on_selector_all("#coloured span", "all => all.map(o => o.title)")
            told_shares = told["attention"][which]
            assert shares == [f"{100 * share:.1f} %" for share in told_shares]
        assert page.locator("#attention tbody tr").count() == 4

        assert page.evaluate("document.documentElement.scrollWidth") <= width
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(255, 255, 255)") == (scheme == "light")
        assert all(url.startswith((server.url, "data:")) for url in tab.requests)
        assert not tab.problems


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_axe_finds_nothing(
    width: int, scheme: str, axe: str, start: Start, server: Running, visit: Callable[..., Any]
) -> None:
    def faults(tab: Tab) -> list[str]:
        tab.page.evaluate(axe)
        found = tab.page.evaluate("axe.run()")["violations"]
        return [f"{one['id']}: {node['html']}" for one in found for node in one["nodes"]]

    with visit(server, width, scheme) as tab:
        tab.page.wait_for_selector("#memory-form:not([hidden])")
        assert not faults(tab)
        tab.compare([*TEXTS, *(f"text number {i}" for i in range(20))], QUERY)
        tab.page.click("#look")
        tab.page.wait_for_selector("#memory:not([hidden])")
        tab.page.click("summary")
        tab.page.fill("#texts", "")
        tab.page.click("#send")
        assert "There is no text" in tab.said()
        assert not faults(tab)
    with visit(start(tokens=(b"secret",)), width, scheme) as tab:
        tab.page.wait_for_selector("#access:not([hidden])")
        assert not faults(tab)


def test_it_is_used_by_keyboard(server: Running, visit: Callable[..., Any]) -> None:
    with visit(server) as tab:
        page = tab.page
        page.wait_for_selector("#memory-form:not([hidden])")
        reached = []
        for _ in range(9):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.id"))
            outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none", reached
            if reached[-1] == "texts":
                page.keyboard.type("one text\nanother text")
        assert reached == [
            *("model", "text-prompt", "query-prompt", "texts", "file", "query", "send"),
            *("memory-text", "look"),
        ]
        page.focus("#send")
        page.keyboard.press("Enter")
        expect(page.locator("#timings-title")).to_be_focused()
        assert page.inner_text("#status") == "2 texts are compared."
        assert page.is_hidden("#nearest")  # there is no query
        assert page.is_hidden("#plane")  # two texts make no map
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "matrix"  # it can be scrolled


def test_errors_of_the_server_come_with_their_remedy(
    server: Running, visit: Callable[..., Any]
) -> None:
    with visit(server) as tab:
        tab.page.wait_for_selector("#memory-form:not([hidden])")
        tab.page.fill("#texts", "a" * 5001)
        tab.page.fill("#query", "b")
        tab.page.click("#send")
        assert "has 5001 characters, and the most is 5000; divide it into parts" in tab.said()
        assert tab.page.is_hidden("#results")
        tab.page.fill("#texts", "one")
        tab.page.fill("#query", "")
        tab.page.click("#send")
        expect(tab.page.locator("#problem")).to_contain_text("one")
        tab.compare(["one", "two"])
        assert tab.page.inner_text("#problem") == ""
        tab.page.route("**/v1/embeddings", lambda route: route.abort())
        tab.page.click("#send")
        assert "The server does not answer" in tab.said()


def test_a_token_is_asked_for_and_forgotten(start: Start, visit: Callable[..., Any]) -> None:
    running = start(tokens=(b"secret",))
    with visit(running) as tab:
        page = tab.page
        page.wait_for_selector("#access:not([hidden])")
        assert "This server wants a token" in tab.said()
        for wrong, says in (
            ("wrong", "does not know this token"),
            ("with spaces", "copy it again"),
        ):
            page.fill("#token", wrong)
            page.press("#token", "Enter")
            expect(page.locator("#problem")).to_contain_text(says)
        page.fill("#token", "secret")
        page.press("#token", "Enter")
        page.wait_for_selector("#access", state="hidden")
        tab.compare(["one", "two", "three"])
        assert page.input_value("#token") == ""
        kept = page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]")
        assert kept == [0, 0, ""]
        assert not any("secret" in url for url in tab.requests)
        page.reload()
        page.wait_for_selector("#access:not([hidden])")


def test_files_are_dropped_and_chosen(
    server: Running, visit: Callable[..., Any], tmp_path: Path
) -> None:
    with visit(server) as tab:
        page = tab.page
        page.evaluate(DROP, [list("erster Satz\nÄrger\n".encode()), "a.txt", "text/plain"])
        expect(page.locator("#texts")).not_to_have_value("")
        assert page.input_value("#texts") == "erster Satz\nÄrger\n"
        assert page.inner_text("#status") == "a.txt: 2 texts."
        page.evaluate(DROP, [[255, 254, 0], "b.txt", "text/plain"])
        assert "b.txt is not UTF-8; save it as UTF-8" in tab.said()
        assert page.input_value("#texts") == "erster Satz\nÄrger\n"
        page.evaluate(DROP, [[1], "c.png", "image/png"])
        expect(page.locator("#problem")).to_contain_text("c.png")
        (tmp_path / "d.txt").write_text("one\r\n\r\n  two  \n")
        page.set_input_files("#file", tmp_path / "d.txt")
        expect(page.locator("#status")).to_contain_text("d.txt")
        assert page.inner_text("#status") == "d.txt: 2 texts."
        assert page.inner_text("#problem") == ""
