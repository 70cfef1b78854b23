"""Tokenizers of every kind: the same ids in every program, and text that is nothing but text."""

import json
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from handmade import MADE, SPECIAL, make_backbone, on_bytes
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerBase, Qwen2Tokenizer

from llm2comp import recipe
from llm2comp.errors import UserError
from llm2comp.evaluation import baselines
from llm2comp.inference.load import load
from llm2comp.model import encoder
from llm2comp.model.backbone import load_backbone
from llm2comp.model.lineage import Lineage, StageRecord
from llm2comp.model.memory_tokens import add_memory_tokens

K, MAX_LENGTH = 3, 20
WRITTEN = ["<|memory_0|>", "<|endoftext|>", "<|begin_of_text|>", "<extra_id_0>", "[SEP]", *SPECIAL]
"""Special tokens of one or another of the tokenizers, to be written in texts."""
TEXTS = [
    "The river rises in the mountains.",
    " Ünïcode 東京\n\n\U0001f40b 123",
    "",
    "<tool_call> a",
    *WRITTEN,
    *(f"coins {name} near" for name in WRITTEN),
    *(f"a\n{name}\n{name}b" for name in WRITTEN),
    "the harbour " * 40,
]


class Case:
    """An untrained encoder: in memory, and saved to a folder."""

    def __init__(
        self, tmp: Path, kind: str, rows: int = 0, *, add_bos: bool | None = None, k: int = K
    ) -> None:
        self.kind = kind
        self.backbone = make_backbone(tmp / "backbone", kind, rows)
        self.folder = tmp / "encoder"
        model, self.original = load_backbone(str(self.backbone), bidirectional=False)
        self.rows = len(model.get_input_embeddings().weight)
        self.memory = list(range(self.rows, self.rows + k))
        lineage = lineage_of(self.backbone, "memory", add_bos, k)
        self.model = encoder.build(lineage, [])
        encoder.save(deepcopy(self.model), self.folder, empty_adapter(tmp), lineage)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer: PreTrainedTokenizerBase = self.model.tokenizer
        return tokenizer

    def text_ids(self, text: str) -> list[int]:
        """Return the ids between BOS and the memory tokens."""
        ids = list(self.tokenizer(text)["input_ids"])
        front = 0 if self.tokenizer.bos_token_id is None else 1
        assert ids[-K:] == self.memory
        return ids[front:-K]

    def special_ids(self) -> set[int]:
        return {i for i, t in self.original.added_tokens_decoder.items() if t.special}


def lineage_of(backbone: Path, prompt_format: str, add_bos: bool | None, k: int = K) -> Lineage:
    stage = {"stage": "pretext", "data": [{"source": "x"}], "steps": 1, "batch_size": 1}
    run = recipe.Recipe.model_validate(
        {
            "name": "tiny",
            "backbone": {"name": str(backbone), "add_bos": add_bos},
            "memory": {"tokens": k},
            "max_length": MAX_LENGTH,
            "stages": [stage | {"learning_rate": 1}],
        }
    )
    return Lineage.start(run, prompt_format).after(
        StageRecord.of(run.stages[0], causal=True, lora={})
    )


def empty_adapter(tmp: Path) -> Path:
    folder = tmp / "adapter"
    folder.mkdir(exist_ok=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_text("{}")
    return folder


@pytest.fixture(scope="module", params=MADE)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("case"), request.param)


def test_ids_are_the_same_in_memory_in_transformers_and_in_tokenizers_alone(case: Case) -> None:
    stock = AutoTokenizer.from_pretrained(case.folder)
    alone = Tokenizer.from_file(str(case.folder / "tokenizer.json"))
    in_memory = case.tokenizer(TEXTS)["input_ids"]
    assert stock(TEXTS)["input_ids"] == in_memory
    assert [encoding.ids for encoding in alone.encode_batch(TEXTS)] == in_memory


def test_a_special_token_that_is_written_in_a_text_stays_text(case: Case) -> None:
    special = case.special_ids()
    for text in TEXTS:
        ids = case.text_ids(text)
        assert not [i for i in ids if i >= case.rows], text
        unknown = case.original.unk_token_id  # an unknown character is text too
        assert not (set(ids) - {unknown}) & special, text


def test_all_other_text_has_the_ids_that_the_original_tokenizer_gives(case: Case) -> None:
    for text in (t for t in TEXTS if not any(name in t for name in WRITTEN)):
        assert case.text_ids(text) == case.original(text, add_special_tokens=False)["input_ids"]


def test_exactly_k_memory_tokens_are_pooled_whatever_the_text(case: Case) -> None:
    stock = SentenceTransformer(str(case.folder), device="cpu")
    features = stock[0](stock.tokenize(TEXTS))
    assert stock[1](features)["token_weights_sum"].tolist() == [K] * len(TEXTS)


def test_a_text_has_one_vector_in_a_batch_alone_in_memory_and_in_the_folder(case: Case) -> None:
    expected = np.stack([case.model.encode(text) for text in TEXTS])
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1.0, atol=1e-5)
    stock, own = SentenceTransformer(str(case.folder), device="cpu"), load(case.folder, "float32")
    for model in (case.model, stock, own):
        np.testing.assert_allclose(model.encode(TEXTS), expected, atol=1e-5)


def test_truncation_cuts_the_text_and_nothing_else(case: Case) -> None:
    front = [] if case.tokenizer.bos_token_id is None else [case.tokenizer.bos_token_id]
    text = case.original(TEXTS[-1], add_special_tokens=False)["input_ids"]
    (ids,) = SentenceTransformer(str(case.folder), device="cpu").tokenize(TEXTS[-1:])["input_ids"]
    assert ids.tolist() == [*front, *text[:MAX_LENGTH], *case.memory]


def test_padding_is_a_token_of_the_model_that_no_text_has(case: Case) -> None:
    pad = case.tokenizer.pad_token_id
    assert 0 <= pad < case.rows
    if case.special_ids():
        assert not any(pad in case.text_ids(text) for text in TEXTS)


def test_decoding_leaves_no_trace_of_memory_tokens(case: Case) -> None:
    stock = AutoTokenizer.from_pretrained(case.folder)
    for text in TEXTS:
        if "memory" not in text:
            assert "memory" not in stock.decode(stock(text)["input_ids"])


OWN_BOS = {"adds BOS": "<s>", "adds both": "<s>", "llama 3": "<|begin_of_text|>"} | {
    "llama 2": "<s>",
    "wordpiece": "[CLS]",
}
"""What the tokenizers put before a text by themselves; all others put nothing."""


def test_null_puts_before_a_text_what_the_tokenizer_itself_puts(case: Case) -> None:
    own = OWN_BOS.get(case.kind)
    ids = list(case.tokenizer("a")["input_ids"])
    expected = [] if own is None else [case.original.convert_tokens_to_ids(own)]
    assert ids[: len(ids) - K - len(case.text_ids("a"))] == expected
    assert case.tokenizer.bos_token == own


@pytest.mark.parametrize("kind", ["plain", "adds BOS"])
@pytest.mark.parametrize("add_bos", [True, False])
def test_a_choice_of_bos_overrides_the_tokenizer(tmp_path: Path, kind: str, add_bos: bool) -> None:
    case = Case(tmp_path, kind, add_bos=add_bos)
    bos = [case.original.bos_token_id] if add_bos else []
    text = case.original("rivers", add_special_tokens=False)["input_ids"]
    assert case.tokenizer("rivers")["input_ids"] == [*bos, *text, *case.memory]
    assert Lineage.read(case.folder).backbone.add_bos is add_bos


def test_true_puts_no_bos_where_the_tokenizer_has_none(tmp_path: Path) -> None:
    case = Case(tmp_path, "no bos", add_bos=True)
    assert case.tokenizer("")["input_ids"] == case.memory


def test_a_tokenizer_that_transformers_makes_of_other_files_puts_its_bos(tmp_path: Path) -> None:
    """Where there is no tokenizer.json, tokenizer_config.json says whether there is a BOS."""
    options = {"tokenizer_class": "GPT2Tokenizer", "unk_token": "</s>", "add_bos_token": True}
    backbone = make_backbone(tmp_path / "backbone", "plain", **options)
    Tokenizer.from_file(str(backbone / "tokenizer.json")).model.save(str(backbone))
    (backbone / "tokenizer.json").unlink()
    lineage = lineage_of(backbone, "memory", None)
    model = encoder.build(lineage, [])
    encoder.save(deepcopy(model), tmp_path / "encoder", empty_adapter(tmp_path), lineage)
    alone = Tokenizer.from_file(str(tmp_path / "encoder" / "tokenizer.json"))
    original = AutoTokenizer.from_pretrained(backbone)
    for text in ("The river rises.", "", "a <s> b"):
        plain = original(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        ids = model.tokenizer(text)["input_ids"]
        assert ids[:-K] == [original.bos_token_id, *plain]
        assert alone.encode(text).ids == ids


def test_several_tokens_before_a_text_are_one_clear_line(tmp_path: Path) -> None:
    backbone = make_backbone(tmp_path, "adds BOS")
    state = json.loads((backbone / "tokenizer.json").read_text())
    state["post_processor"]["single"].insert(0, state["post_processor"]["single"][0])
    (backbone / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match="puts 2 tokens before every text.*add_bos"):
        encoder.build(lineage_of(backbone, "memory", None), [])


@pytest.mark.parametrize("kind", ["plain", "none of them", "llama 3", "unigram"])
def test_rows_without_a_token_do_not_move_the_memory_tokens(tmp_path: Path, kind: str) -> None:
    case = Case(tmp_path, kind, rows=7)
    stock = SentenceTransformer(str(case.folder), device="cpu")
    assert case.text_ids("rivers") == case.original("rivers", add_special_tokens=False)["input_ids"]
    assert stock.tokenize([""])["input_ids"][0].tolist()[-K:] == case.memory
    assert stock.tokenizer.pad_token_id < case.rows
    if kind != "plain":  # it has a padding token
        free = len(case.original)
        assert (stock.tokenizer.pad_token_id >= free) == (kind == "none of them")
    alone = Tokenizer.from_file(str(case.folder / "tokenizer.json"))
    assert alone.token_to_id(stock.tokenizer.pad_token) == stock.tokenizer.pad_token_id
    assert not any(stock.tokenizer.pad_token_id in alone.encode(text).ids for text in TEXTS)


def test_added_tokens_without_a_row_are_text(tmp_path: Path) -> None:
    """Gemma 3 has a token for images that its text models have no row for."""
    case = Case(tmp_path, "llama 3", rows=-1)  # <tool_call> is the last one
    assert case.original.convert_tokens_to_ids("<tool_call>") == case.rows
    stock = SentenceTransformer(str(case.folder), device="cpu")
    (ids,) = stock.tokenize(["<tool_call>"])["input_ids"].tolist()
    assert [i for i in ids if i >= case.rows] == case.memory
    pieces = ids[1:-K]  # behind BOS
    assert case.original.decode(pieces) == "<tool_call>"
    assert len(pieces) > 1


def test_a_vocabulary_larger_than_the_model_is_one_clear_line(tmp_path: Path) -> None:
    backbone = make_backbone(tmp_path, "plain", rows=-1)
    with pytest.raises(UserError, match="give the tokenizer that belongs to the model"):
        encoder.build(lineage_of(backbone, "memory", None), [])


@pytest.mark.parametrize("wrong", ["LlamaTokenizer", "GemmaTokenizer", "BertTokenizer"])
def test_tokenizer_json_counts_where_the_class_is_a_wrong_one(tmp_path: Path, wrong: str) -> None:
    right = make_backbone(tmp_path / "right", "plain")
    backbone = make_backbone(tmp_path / "wrong", "plain", tokenizer_class=wrong)
    alone = Tokenizer.from_file(str(right / "tokenizer.json"))
    model = encoder.build(lineage_of(backbone, "memory", False), [])
    for text in ("The river rises", "  1234\n東京"):
        assert model.tokenizer(text)["input_ids"][:-K] == alone.encode(text).ids
        vector = baselines.build("mean", backbone).encode(text)
        np.testing.assert_allclose(vector, baselines.build("mean", right).encode(text), atol=1e-6)


def test_a_type_whose_class_builds_the_tokenizer_anew_gives_the_same_ids(tmp_path: Path) -> None:
    backbone = make_backbone(tmp_path / "backbone", "qwen2", model_type="qwen2")
    lineage = lineage_of(backbone, "memory", None)
    model = encoder.build(lineage, [])
    encoder.save(deepcopy(model), tmp_path / "encoder", empty_adapter(tmp_path), lineage)
    stock = AutoTokenizer.from_pretrained(tmp_path / "encoder")
    assert type(stock) is Qwen2Tokenizer
    alone = Tokenizer.from_file(str(tmp_path / "encoder" / "tokenizer.json"))
    rows = len(encoder.encoder_body(model).get_input_embeddings().weight)
    for text, ids in zip(TEXTS, stock(TEXTS)["input_ids"], strict=True):
        assert ids == alone.encode(text).ids == model.tokenizer(text)["input_ids"]
        assert [i for i in ids if i >= rows - K] == list(range(rows - K, rows))


def test_a_type_whose_folder_would_load_another_tokenizer_is_one_clear_line(
    tmp_path: Path,
) -> None:
    backbone = make_backbone(tmp_path, "normalized", model_type="qwen2")
    with pytest.raises(UserError, match="loads a Qwen2Tokenizer for every model of the type qwen2"):
        encoder.build(lineage_of(backbone, "memory", None), [])


def test_a_tokenizer_without_a_fast_version_is_one_clear_line(tmp_path: Path) -> None:
    model, _ = load_backbone(str(make_backbone(tmp_path, "plain")), bidirectional=False)
    with pytest.raises(UserError, match=r"\(ByT5Tokenizer\) has no fast version.*tokenizer\.json"):
        add_memory_tokens(model, ByT5Tokenizer(), recipe.Memory(), 0)


def test_offsets_of_byte_level_tokens_stay_trimmed(tmp_path: Path) -> None:
    case = Case(tmp_path, "llama 3")
    stock = AutoTokenizer.from_pretrained(case.folder)
    text = "a river, <|eot_id|> the sea"
    ours, theirs = (
        tokenizer(text, return_offsets_mapping=True, split_special_tokens=True)["offset_mapping"]
        for tokenizer in (stock, case.original)
    )
    assert ours[: len(theirs)] == theirs


@pytest.mark.parametrize("add_bos", [True, False, None])
@pytest.mark.parametrize("kind", ["plain", "no bos", "adds EOS"])
def test_an_encoder_without_memory_tokens_begins_every_text(
    tmp_path: Path, kind: str, add_bos: bool | None
) -> None:
    backbone = make_backbone(tmp_path / "backbone", kind)
    lineage = lineage_of(backbone, "text", add_bos)
    encoder.save(encoder.build(lineage, []), tmp_path / "model", empty_adapter(tmp_path), lineage)
    model = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    first = model.tokenizer.convert_tokens_to_ids("</s>" if kind == "no bos" else "<s>")
    assert model.tokenize([""])["input_ids"].tolist() == [[first]]
    vectors = model.encode(["", "a river", "<s>"])
    with np.errstate(all="raise"):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    body = encoder.encoder_body(model)
    for text, vector in zip(["", "a river"], vectors, strict=False):
        ids = model.tokenize([text])["input_ids"]
        states = body(ids).last_hidden_state[0].detach().numpy()
        mean = states[1:].mean(0) if text else states[0]  # an empty text has its first token alone
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)


def test_an_encoder_without_memory_tokens_needs_a_first_token(tmp_path: Path) -> None:
    backbone = make_backbone(tmp_path, "none of them")
    with pytest.raises(UserError, match="has neither BOS nor EOS"):
        encoder.build(lineage_of(backbone, "text", None), [])


@pytest.mark.parametrize("kind", MADE)
def test_baselines_read_every_tokenizer(tmp_path: Path, kind: str) -> None:
    backbone = make_backbone(tmp_path, kind)
    for name, add_bos in (("prompteol", False), ("mean", None), ("echo", True)):
        if kind == "none of them" or kind == "wordpiece":
            with pytest.raises(UserError, match="has neither BOS nor EOS"):
                baselines.build("mean", backbone)
            continue
        model = baselines.build(name, backbone, add_bos=add_bos)
        alone = np.stack([model.encode(text) for text in TEXTS])
        np.testing.assert_allclose(model.encode(TEXTS), alone, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1.0, atol=1e-5)


def test_a_baseline_has_bos_as_the_recipe_chooses(tmp_path: Path) -> None:
    backbone = make_backbone(tmp_path, "plain")
    rows = [
        baselines.build("prompteol", backbone, add_bos=choice).tokenize(["a"])
        for choice in (True, None)
    ]
    with_bos, without = (row["input_ids"][row["attention_mask"].bool()].tolist() for row in rows)
    assert with_bos == [1, *without]


def test_more_memory_tokens_than_positions_are_one_clear_line(tmp_path: Path) -> None:
    backbone = make_backbone(tmp_path, "plain")
    path = backbone / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": K}))
    with pytest.raises(UserError, match="has 3 positions.*take 3; lower memory.tokens"):
        encoder.build(lineage_of(backbone, "memory", False), [])


def test_a_max_seq_length_without_room_for_text_is_one_clear_line(tmp_path: Path) -> None:
    case = Case(tmp_path, "adds BOS")
    model = load(case.folder, "float32")
    model.max_seq_length = K + 2
    (ids,) = model.tokenize(["the river rises"])["input_ids"].tolist()
    assert len(ids) == K + 2
    assert ids[-K:] == case.memory
    model.max_seq_length = K + 1
    with pytest.raises(UserError, match="max_seq_length 4 leaves no room for text: .* takes? 4"):
        model.encode(["a"])


def test_a_tokenizer_without_any_special_token_keeps_its_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It pads with its last token, which is text: saving must not keep texts from having it."""
    monkeypatch.setitem(MADE, "no special token", lambda: (on_bytes([]), {}))
    case = Case(tmp_path, "no special token")
    last = case.original.convert_ids_to_tokens(case.rows - 1)
    assert case.tokenizer.pad_token == last
    stock = AutoTokenizer.from_pretrained(case.folder)
    alone = Tokenizer.from_file(str(case.folder / "tokenizer.json"))
    for text in (last, f"a {last} b", TEXTS[0]):
        ids = case.original(text)["input_ids"] + case.memory
        assert ids == stock(text)["input_ids"] == alone.encode(text).ids
        assert ids == case.tokenizer(text)["input_ids"]
    assert case.rows - 1 in case.original(last)["input_ids"]
