"""The files of the page, and what the server says of memory tokens."""

import re
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
from running_server import Running, assert_problem
from sentence_transformers import SentenceTransformer

from llm2comp.inference.load import load
from llm2comp.inference.memory_states import collect_memory_states
from llm2comp.model import encoder
from llm2comp.model.backbone import load_backbone
from llm2comp.model.memory_tokens import add_memory_tokens
from llm2comp.recipe_parts import Memory
from llm2comp.serving import memory_view
from llm2comp.serving.memory_view import look
from llm2comp.serving.routes import page
from llm2comp.utils.choices import Prompt

Start = Callable[..., Running]
TEXT = "Whales come to the surface to breathe."


@pytest.fixture(scope="module")
def bidirectional(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, tokenizer = load_backbone(str(tiny_backbone))
    with torch.random.fork_rng():
        extended = add_memory_tokens(model, tokenizer, Memory(tokens=3), seed=0)
    made = encoder.assemble(model, extended, 3, causal=False, prompts={}, max_length=64)
    path = tmp_path_factory.mktemp("bidirectional") / "encoder"
    made.save_pretrained(str(path))
    return path


def reference(model: SentenceTransformer, text: str, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return attention `(k, tokens)` and cosines `(k, k)`, by transformers alone."""
    ids = torch.tensor([model.tokenizer(text)["input_ids"]])
    body = model[0].model
    usual = body.config._attn_implementation
    body.set_attn_implementation("eager")
    with torch.no_grad():
        out = body(input_ids=ids, attention_mask=torch.ones_like(ids), output_attentions=True)
    body.set_attn_implementation(usual)
    states = torch.nn.functional.normalize(out.last_hidden_state[0, -k:].double(), dim=-1)
    return torch.stack(out.attentions).mean((0, 2))[0, -k:].numpy(), (states @ states.T).numpy()


@pytest.mark.parametrize(("causal", "k"), [(True, 4), (False, 3)])
def test_memory_tokens_are_those_of_transformers(
    causal: bool, k: int, folder: Path, bidirectional: Path
) -> None:
    model = load(folder if causal else bidirectional, "float32")
    before = model.encode([TEXT])
    view = look(model, TEXT, None)
    attention, cosines = reference(model, TEXT, k)
    np.testing.assert_allclose(view.attention, attention, atol=1e-5)
    np.testing.assert_allclose(view.cosines, cosines, atol=1e-5)
    np.testing.assert_allclose(np.sum(view.attention, 1), 1, atol=1e-5)
    assert view.memory == list(range(len(view.tokens) - k, len(view.tokens)))
    to_later = np.triu(np.array(view.attention)[:, view.memory], 1)
    assert (to_later.max() == 0) == causal
    np.testing.assert_array_equal(model.encode([TEXT]), before)  # the attention is the usual one
    assert not model[0]._forward_pre_hooks


@pytest.mark.parametrize("prompt", [None, "query"])
def test_the_server_tells_them(
    prompt: Prompt | None, server: Running, loaded: SentenceTransformer
) -> None:
    body = {"model": "tiny", "text": TEXT, "input_type": prompt}
    found = server.post("/memory-tokens", json=body).json()
    assert found["model"] == "tiny"
    text = "".join(found["tokens"][place] for place in range(found["memory"][0]))
    assert text.endswith(TEXT)
    assert ("find: " in text) == (prompt == "query")
    states: list[np.ndarray] = []
    with collect_memory_states(loaded, states):
        loaded.encode_query([TEXT]) if prompt else loaded.encode([TEXT])
    unit = states[0][0] / np.linalg.norm(states[0][0], axis=1, keepdims=True)
    np.testing.assert_allclose(found["cosines"], unit @ unit.T, atol=1e-5)
    assert np.shape(found["attention"]) == (4, len(found["tokens"]))
    assert server.get("/v1/models").json()["data"][0]["memory_tokens"] == 4


def test_what_cannot_be_looked_at_is_refused(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(**fields: str) -> requests.Response:
        return server.post("/memory-tokens", json={"model": "tiny", "text": TEXT, **fields})

    assert_problem(ask(text="a" * 5001), 400, "text 0 of text has 5001 characters")
    assert_problem(ask(text=""), 400, "text: string should have at least 1 character")
    assert_problem(ask(model="third"), 404, "give one of tiny, second")
    assert_problem(ask(prompt="query"), 400, 'the field "prompt" is not known')
    monkeypatch.setattr(memory_view, "MOST_TOKENS", 5)
    assert_problem(ask(), 400, "tokens, and the most is 5; shorten it")
    monkeypatch.setattr(memory_view, "memory_weights", lambda _: None)
    assert_problem(ask(), 400, "this model has no memory tokens; choose one")
    monkeypatch.undo()
    assert ask().status_code == HTTPStatus.OK


def test_states_that_are_not_finite_are_no_numbers(folder: Path) -> None:
    model = load(folder, "float32")
    torch.nn.init.constant_(model[0].model.norm.weight, torch.nan)
    with pytest.raises(memory_view.NoMemoryViewError, match="are not finite"):
        look(model, TEXT, None)


def test_a_look_counts_as_a_text_that_waits(server: Running, hold: Callable[..., object]) -> None:
    batcher = server.service.models["tiny"].batcher
    with hold(server):
        waiting = batcher.call(lambda model: model.max_seq_length)
        assert batcher.waiting == 2
        dropped = batcher.call(lambda model: 1 / 0)
        assert dropped.cancel()
    assert waiting.result(10) == 69  # the text's 64, BOS, and the memory tokens
    assert batcher.alive
    with pytest.raises(ZeroDivisionError):
        batcher.call(lambda model: 1 / 0).result(10)
    assert batcher.alive


def test_the_page_loads_nothing_from_elsewhere(server: Running) -> None:
    for path, (name, media_type) in page.FILES.items():
        answer = server.get(path)
        assert answer.status_code == HTTPStatus.OK
        assert answer.headers["content-type"] == f"{media_type}; charset=utf-8"
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "*" not in policy
        urls = set(re.findall(r"(?:https?:)?//[\w.]+[^\s\"']*", answer.text))
        assert urls <= {"http://www.w3.org/2000/svg"}
        assert not re.search(r"<script>|<style|\sstyle=|\son\w+=|innerHTML", answer.text), name
        assert "localStorage" not in answer.text
    document = server.get("/openapi.json").json()
    assert "/page.js" not in document["paths"]
    assert "/memory-tokens" in document["paths"]


def test_the_page_needs_no_token_and_what_it_asks_does(start: Start) -> None:
    running = start(tokens=(b"secret",))
    assert all(running.get(path).status_code == HTTPStatus.OK for path in page.FILES)
    body = {"model": "tiny", "text": TEXT}
    assert_problem(running.post("/memory-tokens", json=body), 401, "there is no token")
    assert running.get("/page").status_code == HTTPStatus.UNAUTHORIZED
    headers = {"Authorization": "Bearer secret"}
    assert running.post("/memory-tokens", json=body, headers=headers).status_code == HTTPStatus.OK


def test_a_wheel_has_the_files_of_the_page() -> None:
    root = str(Path(__file__).parents[2])
    wheel = pytest.importorskip("hatchling.builders.wheel")
    packed = {one.distribution_path for one in wheel.WheelBuilder(root).recurse_included_files()}
    wanted = {f"llm2comp/serving/page/{name}" for name, _ in page.FILES.values()}
    assert wanted <= packed
