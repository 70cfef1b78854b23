"""MNTP and EBAE+EBAR make encoder folders like any other, in the format of their papers."""

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from sentence_transformers import SentenceTransformer
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from llm2comp import recipe
from llm2comp.errors import UserError
from llm2comp.evaluation.metrics import memory_tokens
from llm2comp.inference.memory_states import collect_memory_states
from llm2comp.model.backbone import load_backbone
from llm2comp.model.compressor import Compressor
from llm2comp.model.memory_tokens import add_memory_tokens
from llm2comp.training import pipeline, run_folder
from llm2comp.training.monitoring import held_out
from llm2comp.training.monitoring.held_out import Directions
from llm2comp.training.monitoring.run_log import RunLog
from llm2comp.training.monitoring.watches import HeldOutWatch
from llm2comp.training.objectives.batch import Batch
from llm2comp.training.objectives.objective import Objective
from llm2comp.training.objectives.registry import OBJECTIVES

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
    pipeline.train(recipe.load_recipe(tiny_recipe, PEERS[request.param]), out)
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
        rows = len(body.get_input_embeddings().weight)
        special = range(rows - 4, rows)
        prompt = plain('", summarize the above passage within eight words: ')
        ids = [ids[0], *plain('"'), *ids[1:], *prompt, *special]
        pooled = slice(-4, None)
    mode = {"is_causal": False} if name == "mntp" else {}
    with torch.no_grad():
        states = body(torch.tensor([ids]), **mode).last_hidden_state[0]
    return np.asarray(torch.nn.functional.normalize(states[pooled].mean(0), dim=0))


@pytest.mark.parametrize("stage", ["1-pretext", "2-unsupervised", "3-supervised"])
def test_every_stage_s_folder_embeds_as_the_peer_s_paper_says(
    run: tuple[str, Path], stage: str
) -> None:
    name, out = run
    encoder = SentenceTransformer(str(out / stage), device="cpu")
    expected = np.stack([literal(name, out / stage, text) for text in TEXTS])
    assert np.abs(encoder.encode(TEXTS) - expected).max() < 1e-5
    assert np.isfinite(encoder.encode(["", "word " * 5000])).all()


def test_the_loss_falls_on_held_out_text(run: tuple[str, Path]) -> None:
    _, out = run
    losses = [values["loss"] for values in measured(out / "run.jsonl")]
    assert losses[-1] < losses[0] - 0.05


def measured(log: Path) -> list[dict[str, float]]:
    """What stage 1 measured on held-out text."""
    events = map(json.loads, log.read_text().splitlines())
    return [e["held_out"] for e in events if e["stage"] == "pretext" and "held_out" in e]


@dataclass
class Watched:
    """A trained stage 1 in the form that HeldOutWatch measures."""

    compressor: Compressor
    objective: Objective
    tokenizer: PreTrainedTokenizerBase
    stage: recipe.Pretext

    def batch(self, texts: list[str]) -> Batch:
        plain = self.tokenizer.backend_tokenizer
        ids = [plain.encode(text, add_special_tokens=False).ids for text in texts]
        return Batch.of(
            [[*text, 5] for text in ids],  # and a token as continuation
            [len(text) for text in ids],
            memory_ids=self.compressor.memory_ids,
            bos_id=self.compressor.bos_id,
            pad_id=self.tokenizer.pad_token_id,
        )


@pytest.fixture(scope="module")
def watched(run: tuple[str, Path], tiny_backbone: Path) -> Watched:
    name, out = run
    settings = recipe.load_recipe(out / run_folder.RECIPE)
    (stage,) = (stage for stage in settings.stages if isinstance(stage, recipe.Pretext))
    prompt_format = OBJECTIVES[name].format()
    causal = stage.attention == "causal"
    model, tokenizer = load_backbone(str(tiny_backbone), bidirectional=not causal)
    tokenizer = add_memory_tokens(model, tokenizer, settings.memory, settings.seed, prompt_format)
    rows, bos = prompt_format.num_memory_embeddings(settings.memory.tokens), tokenizer.bos_token_id
    compressor = Compressor(model, rows, stage.lora, bos_id=bos, causal=causal).eval()
    compressor.load_adapter(out / "1-pretext" / "adapter")
    return Watched(compressor, OBJECTIVES[name].of(tokenizer, stage), tokenizer, stage)


def test_the_embedding_that_is_measured_is_the_encoder_folder_s(
    run: tuple[str, Path], watched: Watched
) -> None:
    name, out = run
    encoder = SentenceTransformer(str(out / "1-pretext"), device="cpu")
    states: list[np.ndarray] = []
    with collect_memory_states(encoder, states):
        expected = torch.tensor(encoder.encode(TEXTS))
    batch = watched.batch(TEXTS)
    with torch.no_grad():
        pooled = watched.objective.pooled(watched.compressor, batch)
    vectors = normalize(torch.stack([outputs.mean(0) for outputs in pooled]), dim=-1)
    torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=0)
    values = held_out.measure_loss(watched.compressor, watched.objective, [batch])
    tokens = values.pop("token_cosine", None)
    del values["loss"]
    assert values == pytest.approx(asdict(Directions.of(expected)), abs=1e-3)
    if name == "mntp":  # it has no memory tokens
        assert tokens is None
    else:
        assert tokens == pytest.approx(memory_tokens.measure(states).redundancy, abs=1e-4)


def test_directions_are_in_the_log(run: tuple[str, Path]) -> None:
    name, out = run
    for values in measured(out / "run.jsonl"):
        assert 1 < values["rankme"] <= 8  # held-out passages
        assert 1 < values["participation_ratio"] <= 8
        assert -1 < values["text_cosine"] < 1
        assert ("token_cosine" in values) == (name == "embedding_prediction")


def test_collapse_is_warned_of_once(
    watched: Watched, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = RunLog(tmp_path / "log", Console(file=io.StringIO()))
    batches = [watched.batch(TEXTS[:1] * 3)]
    callback = HeldOutWatch(
        watched.compressor, watched.objective, batches, watched.stage, torch.float32, log
    )
    for step in (0, 10, 20):
        callback.measure(step)
    events = [json.loads(line) for line in log.path.open()]
    assert [event["step"] for event in events if "held_out" in event] == [0, 10, 20]
    assert [event["step"] for event in events if "warning" in event] == [10]
    (warning,) = [text for text in caplog.messages if "collapsed" in text]
    assert warning.startswith("pretext, step 10: ")


def test_the_card_says_what_the_embedding_is(run: tuple[str, Path]) -> None:
    name, out = run
    card = (out / "1-pretext" / "README.md").read_text()
    assert ("mean over the text's own tokens" in card) == (name == "mntp")


def test_mntp_on_a_causal_encoder_is_refused(tiny_recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"set pretext\.attention=bidirectional"):
        pipeline.train(recipe.load_recipe(tiny_recipe, PEERS["mntp"][:1]), tmp_path / "run")
