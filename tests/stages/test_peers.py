"""The peers' pretexts make encoder folders like any other, in the form of their papers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from llm2comp import recipe
from llm2comp.errors import UserError
from llm2comp.stages import chain

PEERS = {
    "mntp": ["pretext.objective=mntp", "pretext.attention=bidirectional"],
    "embedding_prediction": ["pretext.objective=embedding_prediction"],
}
TEXTS = ["The river rises in the mountains.", "Tomatoes!", "a", "Roman coins, found near here"]


@pytest.fixture(scope="module", params=list(PEERS))
def run(
    request: pytest.FixtureRequest, tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp("peer") / "run"
    chain.train(recipe.load_recipe(tiny_recipe, PEERS[request.param]), out)
    return request.param, out


def literal(name: str, folder: Path, text: str) -> np.ndarray:
    """One text through the body alone, pooled as the peer's paper says."""
    body = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def plain(part: str) -> list[int]:
        return list(tokenizer.backend_tokenizer.encode(part, add_special_tokens=False).ids)

    ids = [tokenizer.bos_token_id, *plain(text)]
    pooled = slice(1, None)
    if name == "embedding_prediction":
        special = tokenizer.convert_tokens_to_ids([f"<|memory_{i}|>" for i in range(4, 8)])
        prompt = plain('", summarize the above passage within eight words: ')
        ids = [ids[0], *plain('"'), *ids[1:], *prompt, *special]
        pooled = slice(-4, None)
    mode = {"is_causal": False} if name == "mntp" else {}
    with torch.no_grad():
        states = body(torch.tensor([ids]), **mode).last_hidden_state[0]
    return np.asarray(torch.nn.functional.normalize(states[pooled].mean(0), dim=0))


@pytest.mark.parametrize("stage", ["1-pretext", "2-unsupervised", "3-supervised"])
def test_every_stage_s_folder_embeds_in_the_peer_s_form(run: tuple[str, Path], stage: str) -> None:
    name, out = run
    encoder = SentenceTransformer(str(out / stage), device="cpu")
    expected = np.stack([literal(name, out / stage, text) for text in TEXTS])
    assert np.abs(encoder.encode(TEXTS) - expected).max() < 1e-5
    assert np.isfinite(encoder.encode(["", "word " * 5000])).all()


def test_the_loss_falls_on_held_out_text(run: tuple[str, Path]) -> None:
    _, out = run
    events = map(json.loads, (out / "run.jsonl").read_text().splitlines())
    losses = [event["held_out"]["loss"] for event in events if "held_out" in event]
    assert losses[-1] < losses[0] - 0.05


def test_the_card_says_what_the_embedding_is(run: tuple[str, Path]) -> None:
    name, out = run
    card = (out / "1-pretext" / "README.md").read_text()
    assert ("mean over the text's own tokens" in card) == (name == "mntp")


def test_mntp_on_a_causal_encoder_is_refused(tiny_recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"set pretext\.attention=bidirectional"):
        chain.train(recipe.load_recipe(tiny_recipe, PEERS["mntp"][:1]), tmp_path / "run")
