"""`evaluation.vectors` in a run and in a study: what is scored, and what is trained once."""

from pathlib import Path

import pytest
import yaml
from run_study import go

import llm2comp
from llm2comp.errors import UserError
from llm2comp.evaluation import late_interaction, runner, suites
from llm2comp.inference.load import load
from llm2comp.model.multi_vector.memory_vectors import append_memory_vectors
from llm2comp.recipe import load_recipe
from llm2comp.training.run_folder import read_scores
from llm2comp.training.scoring import check_evaluation


def by_hand(folder: Path) -> float:
    model = append_memory_vectors(load(folder, "float32"), "tiny")
    tasks = late_interaction.with_max_sim(suites.tasks(["STS17"], quick=True))
    return runner.evaluate(model, "tiny", tasks)[0].main_score


def test_settings_that_differ_in_what_is_scored_share_their_training(
    study_file: Path, tmp_path: Path, sets: object
) -> None:
    assert sets
    study = yaml.safe_load(study_file.read_text())
    del study["tuning"]
    study["recipe"]["backbone"]["dtype"] = "float32"
    study["recipe"]["evaluation"]["baselines"] = []
    study |= {"seeds": [0], "settings": {"one": [], "k": ["evaluation.vectors=k"]}}
    study_file.write_text(yaml.safe_dump(study))
    out = tmp_path / "study"
    found = go(study_file, out)
    scores = {
        result.setting: row[0].main_score
        for result in found.trials.values()
        for row in result.scores.values()
    }
    weights = list(out.glob("*/*/1-pretext/model.safetensors"))
    assert len({file.read_bytes() for file in weights}) == 1
    assert len(weights) == 2
    assert scores["k"] == pytest.approx(by_hand(weights[0].parent))
    assert scores["one"] != scores["k"]


def test_the_rows_of_a_run_say_which_vectors_were_scored(
    tiny_recipe: Path, tmp_path: Path, sets: object
) -> None:
    assert sets
    settings = yaml.safe_load(tiny_recipe.read_text())
    settings["stages"] = settings["stages"][:1]
    settings["stages"][0]["steps"] = 1
    settings["backbone"]["dtype"] = "float32"
    settings["evaluation"] = {"tasks": ["STS17"]}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(settings))
    for vectors in ("one", "k"):
        folder = llm2comp.train(
            tmp_path / "r.yaml", tmp_path / "run", [f"evaluation.vectors={vectors}"]
        )
        found = read_scores(folder.parent)  # the rows of one vector stay
        rows = {name: score.main_score for name, (score,) in found.items()}
    many, one = rows  # those of the last call come first
    assert many == f"{one}, k vectors"
    assert rows[many] == pytest.approx(by_hand(folder))
    assert rows[one] != rows[many]


def test_what_cannot_be_scored_is_said_before_anything_is_trained(tiny_recipe: Path) -> None:
    with pytest.raises(UserError, match="TREC has no such score"):
        check_evaluation(
            load_recipe(tiny_recipe, ["evaluation.tasks=[TREC]", "evaluation.vectors=k"])
        )
    with pytest.raises(UserError, match="baselines have none"):
        load_recipe(tiny_recipe, ["evaluation.baselines=[echo]", "evaluation.vectors=k"])
