"""The encoder folder: stock sentence-transformers loads it, and the embeddings are the same."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm2comp import recipe
from llm2comp.errors import UserError
from llm2comp.model import encoder
from llm2comp.model.compressor import Compressor
from llm2comp.model.lineage import Lineage, StageRecord
from llm2comp.model.lora import trainable_parameters
from llm2comp.model.memory_tokens import add_memory_tokens
from llm2comp.training.objectives.batch import Batch

TEXTS = ["The river rises in the mountains.", "Tomatoes!", "a", "Roman coins, found near here"]


def untrained(backbone: Path, k: int = 4, *, causal: bool = False) -> SentenceTransformer:
    model = AutoModelForCausalLM.from_pretrained(backbone)
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    extended = add_memory_tokens(model, tokenizer, recipe.Memory(tokens=k), seed=0)
    return encoder.assemble(model, extended, k, causal=causal, max_length=64)


def memory_ids(model: SentenceTransformer, k: int) -> list[int]:
    rows = len(encoder.encoder_body(model).get_input_embeddings().weight)
    return list(range(rows - k, rows))


KINDS = {"causal": (True, None), "bidirectional": (False, None), "without BOS": (True, False)}
"""Whether attention is causal, and `add_bos`."""


@pytest.fixture(params=KINDS)
def trained(
    request: pytest.FixtureRequest, tiny_backbone: Path, tmp_path: Path
) -> tuple[Compressor, Path]:
    """A compressor with a non-trivial adapter, and the encoder folder written from it."""
    return write_encoder(request.param, tiny_backbone, tmp_path)


def write_encoder(kind: str, tiny_backbone: Path, out: Path) -> tuple[Compressor, Path]:
    torch.manual_seed(0)
    causal, add_bos = KINDS[kind]
    run = recipe.Recipe.model_validate(
        {
            "name": "tiny",
            "backbone": {"name": str(tiny_backbone), "add_bos": add_bos},
            "memory": {"tokens": 4},
            "stages": [
                {"stage": "pretext", "data": [{"source": "x"}], "steps": 1}
                | {"batch_size": 1, "learning_rate": 1}
            ],
        }
    )
    model = AutoModelForCausalLM.from_pretrained(tiny_backbone).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)
    extended = add_memory_tokens(model, tokenizer, run.memory, run.seed, add_bos=add_bos)
    assert (extended.bos_token_id is None) == (add_bos is False)
    compressor = Compressor(
        model, 4, recipe.Lora(r=4), bos_id=extended.bos_token_id, causal=causal
    ).eval()
    with torch.no_grad():
        for parameter in trainable_parameters(compressor).values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    compressor.save_adapter(out / "adapter")
    record = StageRecord.of(run.stages[0], causal=causal, lora={})
    lineage = Lineage.start(run, "memory").after(record)
    built = encoder.build(lineage, [out / "adapter"])
    encoder.save(built, out / "folder", out / "adapter", lineage)
    return compressor, out / "folder"


def in_memory_embeddings(compressor: Compressor, folder: Path) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        batch = Batch.of(
            [[*ids, 5]],
            [len(ids)],
            memory_ids=compressor.memory_ids,
            bos_id=compressor.bos_id,
            pad_id=0,
        )
        with torch.no_grad():
            memory = compressor.compress(batch.input_ids, batch.attention_mask)
        rows.append(torch.nn.functional.normalize(memory.mean(1), dim=-1)[0])
    return torch.stack(rows)


def test_folder_equals_the_model_in_memory(trained: tuple[Compressor, Path]) -> None:
    compressor, folder = trained
    loaded = SentenceTransformer(str(folder), device="cpu")
    expected = in_memory_embeddings(compressor, folder)
    torch.testing.assert_close(
        loaded.encode(TEXTS, convert_to_tensor=True), expected, atol=1e-6, rtol=0
    )


def test_folders_load_where_this_package_is_hidden(tiny_backbone: Path, tmp_path: Path) -> None:
    made = {kind: write_encoder(kind, tiny_backbone, tmp_path / kind) for kind in KINDS}
    script = """
import sys
sys.modules["llm2comp"] = None  # an import would raise
import numpy as np
from sentence_transformers import SentenceTransformer
out, count, *rest = sys.argv[1:]
folders, texts = rest[:int(count)], rest[int(count):]
models = [SentenceTransformer(folder, device="cpu") for folder in folders]
np.save(out, np.stack([model.encode(texts) for model in models]))
"""
    out = tmp_path / "embeddings.npy"
    folders = [str(folder) for _, folder in made.values()]
    command = [sys.executable, "-c", script, str(out), str(len(made)), *folders, *TEXTS]
    subprocess.run(command, check=True)
    for found, (compressor, folder) in zip(np.load(out), made.values(), strict=True):
        expected = in_memory_embeddings(compressor, folder).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_folder_holds_safetensors_and_text_only(trained: tuple[Compressor, Path]) -> None:
    _, folder = trained
    suffixes = {file.suffix for file in folder.rglob("*") if file.is_file()}
    assert suffixes <= {".safetensors", ".json", ".md", ".jinja", ".sha256"}
    config = json.loads((folder / "config.json").read_text())
    assert config["is_causal"] is not config["use_bidirectional_attention"]
    card = (folder / "README.md").read_text()
    assert "| pretext | distillation | x | 1 x 1 | 1 |" in card
    assert "the mean over the outputs of the 4 memory tokens that follow every text" in card
    assert "Embeddings have\n32 dimensions and unit length." in card
    lineage = Lineage.read(folder)
    assert lineage.memory.tokens == 4
    assert lineage.versions["torch"] == version("torch")
    with safe_open(folder / "adapter" / "adapter_model.safetensors", "pt") as adapter:
        names = set(adapter.keys())
    assert not [name for name in names if "embed" in name and "delta" not in name]


@pytest.mark.parametrize("causal", [True, False])
def test_padding_side_batch_and_order_do_not_matter(tiny_backbone: Path, *, causal: bool) -> None:
    model = untrained(tiny_backbone, causal=causal)
    alone = np.stack([model.encode(text) for text in TEXTS])
    for side in ("left", "right"):
        model.tokenizer.padding_side = side
        for size in (2, 4):
            np.testing.assert_allclose(model.encode(TEXTS, batch_size=size), alone, atol=1e-5)
        np.testing.assert_allclose(model.encode(TEXTS[::-1])[::-1], alone, atol=1e-5)


@pytest.mark.parametrize("k", [1, 2, 8, 32])
def test_memory_tokens_follow_a_text_of_any_length(tiny_backbone: Path, k: int) -> None:
    model = untrained(tiny_backbone, k)
    memory = memory_ids(model, k)
    for text in ("", "a", "sunflowers and beans " * 5000):
        ids = model.tokenize([text])["input_ids"][0].tolist()
        assert ids[0] == model.tokenizer.bos_token_id
        assert ids[-k:] == memory
        assert len(ids) <= 64 + 1 + k
        assert sum(i in memory for i in ids) == k


def test_a_text_that_spells_a_memory_token_stays_text(tiny_backbone: Path, tmp_path: Path) -> None:
    untrained(tiny_backbone, 2).save_pretrained(str(tmp_path / "model"))
    model = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    ids = model.tokenize(["say <|memory_0|> twice"])["input_ids"][0].tolist()
    memory = memory_ids(model, 2)
    assert [i for i in ids if i in memory] == memory


def test_embedding_is_the_mean_of_the_memory_outputs(tiny_backbone: Path) -> None:
    model = untrained(tiny_backbone, 3)
    features = model.tokenize(["Whales are mammals."])
    with torch.no_grad():
        states = model[0].model(**features).last_hidden_state[0, -3:]
        output = model(model.tokenize(["Whales are mammals."]))["sentence_embedding"][0]
    expected = torch.nn.functional.normalize(states.mean(0), dim=0)
    torch.testing.assert_close(output, expected, atol=1e-6, rtol=0)


def test_any_text_gives_a_finite_unit_embedding(tiny_backbone: Path) -> None:
    model = untrained(tiny_backbone)
    texts = ["", " ", "\x00\x07", "\U0001f40b" * 50, "ا" * 300, "x" * 100_000, "\r\n\t", "￿"]
    embeddings = model.encode(texts)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, atol=1e-5)


def test_text_init_starts_from_the_token_embeddings_of_the_text(tiny_backbone: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_backbone)
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)
    table = model.get_input_embeddings().weight.detach().clone()
    memory = recipe.Memory(tokens=2, init="text", init_text="river")
    add_memory_tokens(model, tokenizer, memory, seed=0)
    rows = model.get_input_embeddings().weight.detach()[-2:]
    ids = tokenizer("river", add_special_tokens=False)["input_ids"]
    nearest = torch.cdist(rows, table).argmin(1).tolist()
    assert nearest == (ids * 2)[-2:]


def test_a_wrong_adapter_or_folder_is_one_clear_line(tiny_backbone: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not fit"):
        encoder.merge(untrained(tiny_backbone), tmp_path / "nothing")
    with pytest.raises(UserError, match="it has no llm2comp.json"):
        Lineage.read(tmp_path)


@pytest.mark.parametrize("harm", ["half of the tensors", "one of another shape", "a foreign one"])
def test_an_incomplete_adapter_is_refused(
    trained: tuple[Compressor, Path], tiny_backbone: Path, tmp_path: Path, harm: str
) -> None:
    compressor, folder = trained
    lineage, adapter = Lineage.read(folder), tmp_path / "adapter"
    lineage.backbone.name = str(tiny_backbone)  # the folder has the name alone
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    if harm == "half of the tensors":
        tensors = dict(sorted(tensors.items())[::2])
    elif harm == "one of another shape":
        name = max(tensors)
        tensors[name] = torch.cat([tensors[name], tensors[name]])
    else:
        tensors["foreign"] = torch.zeros(2)
    save_file(tensors, file)
    with pytest.raises(UserError, match="adapter .* does not fit this encoder"):
        encoder.build(lineage, [adapter])
    with pytest.raises(RuntimeError):
        compressor.load_adapter(adapter)


def test_an_encoder_is_assembled_on_the_device_of_its_body(tiny_backbone: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_backbone)
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)
    extended = add_memory_tokens(model, tokenizer, recipe.Memory(tokens=4), seed=0)
    model.to("meta")  # any device but the one that sentence-transformers takes by itself
    built = encoder.assemble(model, extended, 4, causal=True)
    assert {tensor.device.type for tensor in built.parameters()} == {"meta"}
