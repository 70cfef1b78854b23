from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm2comp.errors import UserError
from llm2comp.evaluation import baselines

NAMES = list(baselines.BASELINES)


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(name: str, tiny_backbone: Path) -> SentenceTransformer:
    return baselines.build(name, tiny_backbone)


def literal(name: str, text: str, backbone: Path) -> np.ndarray:
    """One text and one prompt at a time, no padding, through the causal LM itself."""
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    lm = AutoModelForCausalLM.from_pretrained(backbone).eval()

    def ids(part: str) -> list[int]:
        return list(tokenizer(part, add_special_tokens=False)["input_ids"])

    def states(*parts: str) -> np.ndarray:
        whole = [tokenizer.bos_token_id, *(token for part in parts for token in ids(part))]
        with torch.no_grad():
            output = lm(torch.tensor([whole]), output_hidden_states=True)
        return np.asarray(output.hidden_states[-1][0])

    def unit(vector: np.ndarray) -> np.ndarray:
        return np.asarray(vector / np.linalg.norm(vector))

    match name:
        case "last-token":
            return unit(states(text)[-1])
        case "mean":
            return unit(states(text).mean(0))
        case "weighted-mean":
            positions = np.arange(1, len(ids(text)) + 2)
            return unit(positions @ states(text))
        case "echo":
            both = states("Rewrite the sentence: ", text, ", rewritten sentence: ", text)
            return unit(both[-len(ids(text)) :].mean(0))
        case "prompteol":
            return unit(states('This sentence : "', text, '" means in one word:"')[-1])
        case _:
            prompts = baselines.BASELINES[name].prompts
            last = [states(prompt.before, text, prompt.after)[-1] for prompt in prompts]
            return unit(np.mean(last, axis=0))


def test_embeddings_equal_a_literal_reference(
    name: str, model: SentenceTransformer, tiny_backbone: Path, sentences: list[str]
) -> None:
    expected = np.stack([literal(name, text, tiny_backbone) for text in sentences])
    assert np.abs(model.encode(sentences) - expected).max() < 1e-5


def test_batch_and_padding_side_and_order_do_not_matter(
    model: SentenceTransformer, sentences: list[str]
) -> None:
    texts = [*sentences, "", "Short.", " ".join(sentences)]
    alone = np.stack([model.encode(text) for text in texts])
    before = model.tokenizer.padding_side
    try:
        for model.tokenizer.padding_side in ("left", "right"):
            for batch_size in (2, 64):
                together = model.encode(texts, batch_size=batch_size)
                assert np.abs(together - alone).max() < 1e-5
                backwards = model.encode(texts[::-1], batch_size=batch_size)[::-1]
                assert np.abs(backwards - alone).max() < 1e-5
    finally:
        model.tokenizer.padding_side = before


def test_truncation_cuts_the_text_and_nothing_else(
    name: str, model: SentenceTransformer, tiny_backbone: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)

    def ids(part: str) -> list[int]:
        return list(tokenizer(part, add_special_tokens=False)["input_ids"])

    rows = model.preprocess(["word " * 5000])
    prompts = baselines.BASELINES[name].prompts
    for row, mask, prompt in zip(rows["input_ids"], rows["attention_mask"], prompts, strict=True):
        kept = row[mask.bool()].tolist()
        before = [tokenizer.bos_token_id, *ids(prompt.before)]
        after, again = ids(prompt.after), ids(prompt.again)
        copies = 2 if again else 1
        tokens, left = divmod(baselines.MAX_TOKENS - len([*before, *again, *after]), copies)
        text = ids("word " * 5000)[:tokens]
        assert kept == [*before, *text, *([*again, *text] if again else []), *after]
        assert len(kept) == baselines.MAX_TOKENS - left


def test_a_chat_template_is_not_applied(
    tiny_backbone: Path, tmp_path: Path, name: str, sentences: list[str]
) -> None:
    plain = baselines.build(name, tiny_backbone)
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)
    tokenizer.chat_template = "{% for m in messages %}<s>user {{ m['content'] }}{% endfor %}"
    AutoModelForCausalLM.from_pretrained(tiny_backbone).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    chatty = baselines.build(name, tmp_path)
    assert np.array_equal(chatty.encode(sentences), plain.encode(sentences))


@pytest.mark.parametrize("text", ["", " ", "\0", "né 你好 🙂\u202e\ufffd", "a" * 100_000])
def test_any_text_gives_a_finite_unit_vector(model: SentenceTransformer, text: str) -> None:
    vector = model.encode(text)
    assert np.isfinite(vector).all()
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_an_unknown_baseline_or_folder_is_an_error(tiny_backbone: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="last-token, mean, weighted-mean, echo, prompteol, metaeol"
    ):
        baselines.build("first-token", tiny_backbone)
    with pytest.raises(UserError, match=r"no config\.json"):
        baselines.build("last-token", tmp_path)
