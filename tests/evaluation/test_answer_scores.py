"""Exact match and F1, against SQuAD's own script and against values worked out by hand."""

import re
import string
from collections import Counter
from collections.abc import Callable

import pytest

from llm2comp.evaluation.metrics.answers import exact_match, f1, normalised


# The four functions of evaluate-v1.1.py by Rajpurkar et al., as they are published.
def normalize_answer(s: str) -> str:
    def remove_articles(text: str) -> str:
        return re.sub(r"\b(a|an|the)\b", " ", text)

    def white_space_fix(text: str) -> str:
        return " ".join(text.split())

    def remove_punc(text: str) -> str:
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    return white_space_fix(remove_articles(remove_punc(s.lower())))


def f1_score(prediction: str, ground_truth: str) -> float:
    prediction_tokens = normalize_answer(prediction).split()
    ground_truth_tokens = normalize_answer(ground_truth).split()
    common = Counter(prediction_tokens) & Counter(ground_truth_tokens)
    num_same = sum(common.values())
    if num_same == 0:
        return 0
    precision = 1.0 * num_same / len(prediction_tokens)
    recall = 1.0 * num_same / len(ground_truth_tokens)
    return (2 * precision * recall) / (precision + recall)


def exact_match_score(prediction: str, ground_truth: str) -> bool:
    return normalize_answer(prediction) == normalize_answer(ground_truth)


def best(metric: Callable[[str, str], float], said: str, correct: list[str]) -> float:
    return max(metric(said, answer) for answer in correct)


SAID = [
    "",
    "Denver Broncos",
    "the Denver Broncos.",
    "The  Carolina Panthers",
    "in Denver, Denver and again Denver",
    "a an the",
    "24–10",
    "O'Brien's theatre",
    "Ünïcode, and the 2nd line",
    "an-the-a",
]
CORRECT = [
    ["Denver Broncos", "The Denver Broncos", "Broncos"],
    ["24-10", "24–10"],
    ["a"],
    ["obriens theatre"],
    ["the unïcode", "ünïcode and 2nd line"],
]


@pytest.mark.parametrize("said", SAID)
def test_scores_are_those_of_the_published_script(said: str) -> None:
    assert " ".join(normalised(said)) == normalize_answer(said)
    for correct in CORRECT:
        assert f1(said, correct) == pytest.approx(best(f1_score, said, correct))
        assert exact_match(said, correct) == best(exact_match_score, said, correct)


def test_values_by_hand() -> None:
    correct = ["Denver Broncos", "Broncos"]
    assert exact_match("The Broncos!", correct) == 1
    assert exact_match("Broncos of Denver", correct) == 0
    # 2 of 3 words are right, and 2 of 2 are there: 2 * 2 / (3 + 2).
    assert f1("Broncos of Denver", correct) == pytest.approx(0.8)
    assert f1("Panthers", correct) == 0
