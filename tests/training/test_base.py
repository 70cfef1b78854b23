"""Runs that start from an encoder: what they keep of it, what they train, what they refuse."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from base_encoders import fine_tuning
from huggingface_hub import constants
from huggingface_hub.utils import filter_repo_objects
from peft import PeftModel
from rich.console import Console
from run_and_kill import run_and_kill
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from llm2comp import recipe
from llm2comp.data import hub
from llm2comp.errors import UserError
from llm2comp.inference.load import load
from llm2comp.model import encoder
from llm2comp.model.base import open_base
from llm2comp.model.causal_lm.dropout import dropout_settings
from llm2comp.model.lineage import LINEAGE, Lineage
from llm2comp.recipe import Recipe
from llm2comp.training import pipeline
from llm2comp.training.run_folder import as_yaml
from llm2comp.training.trainer import AdapterCheckpoints

FULL = ("supervised.lora=null", "supervised.learning_rate=1e-3")
SHORT = [
    "backbone.dtype=float32",
    *(f"{stage}.steps=4" for stage in ("pretext", "unsupervised", "supervised")),
]
KINDS = {"lora": (), "all weights": FULL}


def train(settings: Recipe, out: Path) -> Path:
    return pipeline.train(settings, out, Console(quiet=True))


def stock(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu")


def weights(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(folder.rglob("model.safetensors")))


@pytest.fixture(scope="module")
def run(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three stages from a backbone."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(recipe.load_recipe(tiny_recipe, SHORT), out)
    return out


@pytest.fixture(scope="module")
def tuned(bert: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Encoders that began as the BERT, trained with LoRA and with all weights."""
    out = tmp_path_factory.mktemp("tuned")
    return {
        kind: train(fine_tuning(bert, pairs, *overrides), out / kind)
        for kind, overrides in KINDS.items()
    }


def test_a_lora_on_an_encoder_of_others_is_the_base_with_the_adapter(
    bert: Path, tuned: dict[str, Path], sentences: list[str]
) -> None:
    expected = stock(bert)
    before = expected.encode(sentences)
    adapted = PeftModel.from_pretrained(expected[0].model, str(tuned["lora"] / encoder.ADAPTER))
    expected[0].model = adapted.merge_and_unload()
    after = stock(tuned["lora"]).encode(sentences)
    assert abs(after - expected.encode(sentences)).max() < 1e-6
    assert abs(after - before).max() > 1e-2
    assert load_file(tuned["lora"] / "2_Dense" / "model.safetensors").keys()
    assert weights(tuned["lora"] / "2_Dense") == weights(bert / "2_Dense")


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_of_others_keeps_its_modules(
    bert: Path, tuned: dict[str, Path], kind: str
) -> None:
    folder = tuned[kind]
    for name in ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json"):
        assert (folder / name).read_bytes() == (bert / name).read_bytes()
    before, after = stock(bert), stock(folder)
    assert [type(m) for m in after] == [type(m) for m in before]
    assert after.prompts == before.prompts
    assert after.max_seq_length == before.max_seq_length == 40
    assert (folder / "adapter").exists() == (kind == "lora")
    lineage = Lineage.read(folder)
    assert lineage.backbone is None
    assert lineage.num_memory_tokens == 0
    assert [(base.name, base.stages) for base in lineage.bases] == [("encoder", 0)]
    assert str(bert) not in (folder / LINEAGE).read_text() + (folder / "README.md").read_text()
    assert load(folder, "float32").encode("Whales sing.").shape == (16,)  # and its reference fits


def test_all_weights_of_an_encoder_of_others_train(bert: Path, tuned: dict[str, Path]) -> None:
    before, after = (dict(stock(f).named_parameters()) for f in (bert, tuned["all weights"]))
    same = {name for name in before if torch.equal(before[name], after[name])}
    # Nothing is pooled from the pooler.
    assert all(".pooler." in name for name in same)
    assert "all weights were trained" in (tuned["all weights"] / "README.md").read_text()


def test_a_stage_from_a_base_is_the_stage_of_a_whole_run(
    tiny_recipe: Path, run: Path, tmp_path: Path
) -> None:
    content = recipe.load_recipe(tiny_recipe, SHORT).model_dump()
    content["stages"] = content["stages"][2:]
    for key in ("memory", "max_length", "prompts"):
        del content[key]
    content |= {"name": "later", "base": str(run / "2-unsupervised")}
    content["backbone"] = {"dtype": "float32"}
    folder = train(recipe.parse_recipe(content, [], "recipe"), tmp_path / "run")
    assert weights(folder) == weights(run / "model")
    whole, later = Lineage.read(run / "model"), Lineage.read(folder)
    assert later.stages == whole.stages
    assert later.memory == whole.memory
    assert later.name == "later"
    (base,) = later.bases
    assert (base.name, base.stages, base.seed) == (f"{run.name}/2-unsupervised", 2, 0)
    assert (
        f"The run of stage 3 started from the encoder `{run.name}/2-unsupervised`"
        in (folder / "README.md").read_text()
    )


def test_an_edited_card_is_no_damage(run: Path, pairs: Path, tmp_path: Path) -> None:
    edited = Path(shutil.copytree(run / "model", tmp_path / "base"))
    with (edited / "README.md").open("a") as card:
        card.write("It was trained on letters.\n")
    open_base(fine_tuning(edited, pairs))


def test_all_weights_of_an_encoder_of_ours_train(run: Path, pairs: Path, tmp_path: Path) -> None:
    folder = train(fine_tuning(run / "model", pairs, *FULL), tmp_path / "run")
    before, after = (dict(stock(f).named_parameters()) for f in (run / "model", folder))
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert all(".emb_layer." in name for name in same), "WordWeights alone keep their weights"
    assert not (folder / "adapter").exists()
    lineage = Lineage.read(folder)
    assert [stage.stage for stage in lineage.stages][2:] == ["supervised", "supervised"]
    assert lineage.stages[-1].lora is None
    assert lineage.stages[-1].causal == lineage.stages[-2].causal


def test_all_weights_are_trained_in_float32_below_autocast(
    bert: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    save = AdapterCheckpoints.save_model

    def look(trainer: AdapterCheckpoints, *args: Any, **options: Any) -> None:
        seen.update(p.dtype for p in trainer.model.parameters())
        save(trainer, *args, **options)

    monkeypatch.setattr(AdapterCheckpoints, "save_model", look)
    train(fine_tuning(bert, pairs, *FULL, "backbone.dtype=bfloat16"), tmp_path / "run")
    assert seen == {torch.float32}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_stopped_gives_the_same_weights(
    bert: Path,
    pairs: Path,
    tuned: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    settings, out = fine_tuning(bert, pairs, *KINDS[kind]), tmp_path / "run"
    with monkeypatch.context() as patch:
        step = AdapterCheckpoints.training_step

        def stop(trainer: AdapterCheckpoints, *args: object) -> torch.Tensor:
            if trainer.state.global_step == 5:
                raise KeyboardInterrupt
            return step(trainer, *args)

        patch.setattr(AdapterCheckpoints, "training_step", stop)
        with pytest.raises(KeyboardInterrupt):
            train(settings, out)
    assert list(out.glob(".3-supervised.work/checkpoint-4"))
    assert weights(train(settings, out)) == weights(tuned[kind])
    assert weights(train(settings, out)) == weights(tuned[kind]), "the second start does nothing"


def test_both_later_stages_start_from_an_encoder_of_others(
    bert: Path, pairs: Path, sentences: list[str], tmp_path: Path
) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(sentences * 2) + "\n")
    content = fine_tuning(bert, pairs).model_dump()
    first = content["stages"][0] | {"stage": "unsupervised", "steps": 2, "batch_size": 4}
    first |= {"data": [{"source": str(tmp_path / "texts.txt")}], "eval_pairs": 0}
    for key in ("mining", "guide", "vectors", "reading"):
        del first[key]
    content["stages"] = [first, content["stages"][0]]
    folder = train(recipe.parse_recipe(content, [], "recipe"), tmp_path / "run")
    lineage = Lineage.read(folder)
    assert [stage.stage for stage in lineage.stages] == ["unsupervised", "supervised"]
    assert [base.name for base in lineage.bases] == ["encoder"]


def test_a_bert_has_dropout_of_attention_alone(bert: Path) -> None:
    settings = dropout_settings(stock(bert)[0].model.config, 0.3)
    assert settings["attention_probs_dropout_prob"] == 0.3
    assert settings["hidden_dropout_prob"] == 0.0


def copied_without_prompts(encoder: Path, folder: Path) -> Path:
    shutil.copytree(encoder, folder)
    settings = json.loads((folder / "config_sentence_transformers.json").read_text())
    settings["prompts"] = {"query": "", "document": ""}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    return folder


def test_a_stored_prompt_is_in_training_what_the_rows_would_have_had(
    bert: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = copied_without_prompts(bert, tmp_path / "bare")
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    spelled = [
        {"anchor": f"query: {r['anchor']}", "positive": f"passage: {r['positive']}"} for r in rows
    ]
    trained = {}
    for base, content in ((bert, rows), (bare, spelled)):
        where = tmp_path / f"in-{base.name}"
        where.mkdir()
        monkeypatch.chdir(where)  # because the order of rows depends on the name of the source
        (where / "rows.jsonl").write_text("\n".join(map(json.dumps, content)))
        trained[base] = train(fine_tuning(base, Path("rows.jsonl")), where / "run")
    assert weights(trained[bert]) == weights(trained[bare])
    assert Lineage.read(trained[bert]).stages[-1].query_prompts == {"query: "}
    assert Lineage.read(trained[bare]).stages[-1].query_prompts == set()


def test_an_instruction_becomes_the_query_prompt(
    bert: Path, pairs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ask = "supervised.data.0.query_instruction=Find the second half"
    folder = train(fine_tuning(bert, pairs, ask), tmp_path / "run")
    encoder = stock(folder)
    query = encoder.encode_query("the river")
    assert query.tolist() == encoder.encode("Find the second half:the river").tolist()
    logger = logging.getLogger("llm2comp")
    monkey = logger.propagate
    logger.propagate = True
    try:
        load(folder, "float32")
        assert "in training" not in caplog.text
        settings = json.loads((folder / "config_sentence_transformers.json").read_text())
        settings["prompts"]["query"] = ""
        (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
        load(folder, "float32")
    finally:
        logger.propagate = monkey
    assert "in training 'Find the second half:' stood before each query" in caplog.text
    assert "encode_query puts '' before it" in caplog.text


def test_a_prompt_of_rows_becomes_the_query_prompt(
    bert: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an instruction does, and it stands in the place of the base's prompt, too."""
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    flag = [{"query": r["anchor"], "pos": [r["positive"]], "prompt": "Represent: "} for r in rows]
    (tmp_path / "flag.jsonl").write_text("\n".join(map(json.dumps, flag)))
    monkeypatch.chdir(tmp_path)
    folder = train(fine_tuning(bert, Path("flag.jsonl")), tmp_path / "run")
    encoder = stock(folder)
    assert encoder.prompts["query"] == "Represent: "
    query = encoder.encode_query("the river")
    assert query.tolist() == encoder.encode("Represent: the river").tolist()
    lineage = Lineage.read(folder)
    assert lineage.prompts["query"] == "Represent: "
    assert lineage.stages[-1].query_prompts == {"Represent: "}
    assert lineage.prompt_mismatch(encoder.prompts) is None

    spelled = [
        {"anchor": f"Represent: {r['anchor']}", "positive": f"passage: {r['positive']}"}
        for r in rows
    ]
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")  # because the order of rows depends on the source's name
    Path("flag.jsonl").write_text("\n".join(map(json.dumps, spelled)))
    bare = copied_without_prompts(bert, tmp_path / "bare")
    assert weights(train(fine_tuning(bare, Path("flag.jsonl")), tmp_path / "b")) == weights(folder)


def test_rows_with_several_prompts_are_told_at_load(
    bert: Path, pairs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    flag = [
        {"query": r["anchor"], "pos": [r["positive"]], "prompt": f"P{n % 2}: "}
        for n, r in enumerate(rows)
    ]
    (tmp_path / "flag.jsonl").write_text("\n".join(map(json.dumps, flag)))
    folder = train(fine_tuning(bert, tmp_path / "flag.jsonl"), tmp_path / "run")
    assert stock(folder).prompts == stock(bert).prompts
    told = Lineage.read(folder).prompt_mismatch(stock(folder).prompts)
    assert told is not None
    assert "in training 'P0: ' or 'P1: ' stood before each query, and encode_query puts" in told


def test_a_run_keeps_the_commit_of_its_base_on_the_hub(
    bert: Path,
    tuned: dict[str, Path],
    pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cached = tmp_path / "hub" / "models--me--tiny"
    for commit, folder in (("a" * 40, bert), ("b" * 40, tuned["all weights"])):
        shutil.copytree(folder, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    settings, out = fine_tuning("me/tiny", pairs), tmp_path / "run"
    assert weights(train(settings, out)) == weights(tuned["lora"])
    (base,) = Lineage.read(out / "model").bases
    assert (base.name, base.revision) == ("me/tiny", "a" * 40)
    assert "base_model: me/tiny" in (out / "model" / "README.md").read_text()

    (cached / "refs" / "main").write_text("b" * 40)  # the model on the hub changes
    named = settings.backbone.model_copy(update={"revision": "main"})
    with pytest.raises(UserError, match=f"holds a run of another commit, {'a' * 40}"):
        train(settings.model_copy(update={"backbone": named}), out)
    for stage in ("3-supervised", "model"):
        shutil.rmtree(out / stage)
    assert weights(train(settings, out)) == weights(tuned["lora"])


def test_of_an_encoder_on_the_hub_the_folders_of_its_modules_are_downloaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    there = [
        "config.json",
        "modules.json",
        "model.safetensors",
        "pytorch_model.bin",
        "1_Pooling/config.json",
        "2_Dense/pytorch_model.bin",
        "onnx/model.onnx",
        "onnx/config.json",
        "openvino/openvino_model.bin",
        "modeling.py",
    ]
    asked: list[list[str]] = []

    def download(
        _: str, *, revision: str | None, cache_dir: str | None, **patterns: list[str]
    ) -> str:
        asked.append(list(filter_repo_objects(there, **patterns)))
        for name in asked[-1]:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        return str(tmp_path)

    monkeypatch.setattr(hub.huggingface_hub, "snapshot_download", download)
    hub.download_encoder("me/encoder")
    assert asked == [
        [
            "config.json",
            "modules.json",
            "model.safetensors",
            "1_Pooling/config.json",
            "2_Dense/pytorch_model.bin",
        ]
    ]


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_random_moments_equals_uninterrupted(
    bert: Path, pairs: Path, tuned: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(as_yaml(fine_tuning(bert, pairs, *KINDS[kind])))
    for run in run_and_kill(path, tmp_path / "runs", 10, 2.0):
        assert not list(run.glob(".*")), "hidden files are left"
        assert weights(run / "model") == weights(tuned[kind])
