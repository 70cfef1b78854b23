"""`pretext.steps: 0`: an encoder folder of a backbone that stage 1 has not trained."""

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from torch.nn.functional import normalize
from transformers import AutoModel

from llm2comp.errors import UserError
from llm2comp.evaluation import baselines
from llm2comp.model.lineage import Lineage
from llm2comp.recipe import load_recipe
from llm2comp.training import pipeline, run_folder

OVERRIDES = ["pretext.steps=0", "unsupervised.steps=2", "supervised.steps=2"]


def train(recipe: Path, out: Path, *overrides: str) -> Path:
    pipeline.train(load_recipe(recipe, [*OVERRIDES, *overrides]), out, Console(quiet=True))
    return out / "1-pretext"


@pytest.fixture(scope="module")
def causal_mntp(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the bare backbone with mean pooling, and UCL and SCL after it."""
    out = tmp_path_factory.mktemp("run")
    train(tiny_recipe, out, "pretext.objective=mntp", "pretext.attention=causal")
    return out


def test_mntp_is_the_mean_over_the_bare_backbone_s_states(
    causal_mntp: Path, tiny_backbone: Path, sentences: list[str]
) -> None:
    encoder = SentenceTransformer(str(causal_mntp / "1-pretext"), device="cpu")
    body = AutoModel.from_pretrained(tiny_backbone, dtype=torch.float32)
    baseline = baselines.build("mean", tiny_backbone)
    for text in sentences:
        ids = encoder.tokenizer(text, return_tensors="pt")["input_ids"]
        assert ids[0, 0] == 1  # BOS is read, and its state is not in the mean
        with torch.no_grad():
            states = body(ids).last_hidden_state[0]
        found = encoder.encode(text, convert_to_tensor=True)
        torch.testing.assert_close(found, normalize(states[1:].mean(0), dim=0), atol=1e-5, rtol=0)
        # The baseline reads the same tokens, and has the state of BOS in its mean.
        theirs = torch.as_tensor(baseline.encode(text, output_value="token_embeddings"))
        torch.testing.assert_close(theirs, states, atol=1e-4, rtol=1e-4)
        with_bos = baseline.encode(text, convert_to_tensor=True)
        torch.testing.assert_close(with_bos, normalize(states.mean(0), dim=0), atol=1e-5, rtol=0)


def test_the_folder_says_that_nothing_was_trained(causal_mntp: Path) -> None:
    stage = Lineage.read(causal_mntp / "1-pretext").stages[0]
    assert (stage.steps, stage.data, stage.causal) == (0, [], True)
    card = (causal_mntp / "1-pretext" / "README.md").read_text()
    assert "| pretext | mntp | - | 0 x 4 |" in card
    assert "\nlanguage:" not in card
    events = run_folder.read_events(causal_mntp)
    first = [event for event in events if event["stage"] == "pretext"]
    assert [event["done"] for event in first if "done" in event] == [True]
    assert not any("loss" in event or "passages" in event for event in first)


def test_later_stages_train_the_untrained_encoder(causal_mntp: Path) -> None:
    weights = [
        load_file(causal_mntp / stage / "model.safetensors")
        for stage in ("1-pretext", "2-unsupervised", "3-supervised")
    ]
    layer = "layers.0.self_attn.q_proj.weight"
    assert not torch.equal(weights[0][layer], weights[1][layer])
    assert not torch.equal(weights[1][layer], weights[2][layer])
    assert [stage.steps for stage in Lineage.read(causal_mntp / "3-supervised").stages] == [0, 2, 2]


def test_memory_tokens_are_as_they_begin_and_no_data_is_read(
    tiny_recipe: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    only = load_recipe(tiny_recipe, ["pretext.steps=0", "pretext.data=[{source: missing.txt}]"])
    only = only.model_copy(update={"stages": only.stages[:1]})
    for out in ("run", "again"):
        pipeline.train(only, tmp_path / out, Console(quiet=True))
    folder = tmp_path / "run" / "1-pretext"
    saved = load_file(folder / "model.safetensors")
    frozen = AutoModel.from_pretrained(tiny_backbone, dtype=torch.float32).state_dict()
    table = saved.pop("embed_tokens.weight")
    vocabulary = len(frozen["embed_tokens.weight"])
    assert len(table) == vocabulary + 4
    torch.testing.assert_close(table[:vocabulary], frozen.pop("embed_tokens.weight"))
    assert table[vocabulary:].std(0).min() > 0
    assert saved.keys() == frozen.keys()
    for name, weight in saved.items():
        assert torch.equal(weight, frozen[name]), name
    again = (tmp_path / "again" / "1-pretext" / "model.safetensors").read_bytes()
    assert again == (folder / "model.safetensors").read_bytes()
    assert json.loads((folder / "llm2comp.json").read_bytes())["stages"][0]["steps"] == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pretext.steps=-1", "greater than or equal to 0"),
        ("unsupervised.steps=0", "greater than 0"),
        ("pretext.bidirectional_from_step=3", "never reaches bidirectional_from_step"),
    ],
)
def test_what_makes_no_sense_is_refused(tiny_recipe: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(tiny_recipe, ["pretext.steps=0", override])


def test_attention_that_is_open_cannot_be_opened(tiny_recipe: Path) -> None:
    """A step to open it would close it until then."""
    opened = ["pretext.attention=bidirectional", "pretext.bidirectional_from_step=2"]
    with pytest.raises(UserError, match="bidirectional; leave it or bidirectional_from_step out"):
        load_recipe(tiny_recipe, opened)


@pytest.mark.parametrize("first", [30, 31])
def test_an_attention_that_never_opens_is_refused(tiny_recipe: Path, first: int) -> None:
    """The steps of a stage count from 0, and the last of 30 is 29."""
    load_recipe(tiny_recipe, ["pretext.steps=30", "pretext.bidirectional_from_step=29"])
    overrides = ["pretext.steps=30", f"pretext.bidirectional_from_step={first}"]
    said = f"steps: 30 never reaches bidirectional_from_step: {first}; make it less than steps"
    with pytest.raises(UserError, match=said):
        load_recipe(tiny_recipe, overrides)
