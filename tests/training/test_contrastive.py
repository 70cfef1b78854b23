"""Contrastive training: scored pairs, and the order of rows in a batch."""

from pathlib import Path

from datasets import Dataset, DatasetDict
from rich.console import Console
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer, util
from sentence_transformers.sentence_transformer.training_args import BatchSamplers

from llm2comp import recipe
from llm2comp.training import pipeline
from llm2comp.training.contrastive import train_contrastive
from llm2comp.training.losses.length_sorted import LengthSorted
from llm2comp.training.monitoring.run_log import RunLog
from llm2comp.training.stage_context import StageContext


def test_training_on_scores_reverses_the_order_of_similarities(
    tiny_recipe: Path, sentences: list[str], tmp_path: Path
) -> None:
    settings = recipe.load_recipe(tiny_recipe)
    pipeline.train(settings.model_copy(update={"stages": settings.stages[:1]}), tmp_path / "run")
    source, folder = tmp_path / "run" / "model", tmp_path / "scored"
    anchors, positives = [sentences[0]] * 7, sentences[1:]

    def similarities(encoder: Path) -> list[float]:
        model = SentenceTransformer(str(encoder), device="cpu")
        values = util.pairwise_cos_sim(model.encode(anchors), model.encode(positives))
        return [float(value) for value in values]

    scores = [-similarity for similarity in similarities(source)]
    pairs = {"anchor": anchors, "positive": positives, "score": scores}
    stage = settings.stages[2].model_copy(update={"steps": 40, "batch_size": 7})
    log = RunLog(tmp_path / "run.jsonl", Console())
    train_contrastive(
        StageContext(settings, stage, source, folder, tmp_path / "work", log),
        DatasetDict({"scored": Dataset.from_dict(pairs)}),
        Dataset.from_dict({"anchor": [], "positive": []}),
        batch_sampler=BatchSamplers.BATCH_SAMPLER,
    )
    assert spearmanr(similarities(folder), scores).statistic > 0.9


def test_rows_of_a_batch_are_sorted_and_keep_their_pairs_and_scores() -> None:
    def read(texts: list[str], **_: object) -> dict[str, list[str]]:
        return {"texts": texts}

    rows = [
        {"dataset_name": "a", "anchor": "q" * n, "positive": "p" * n, "score": float(n)}
        for n in (3, 1, 2)
    ]
    batch = LengthSorted(preprocess_fn=read)(rows)
    assert batch["anchor_texts"] == ["q", "qq", "qqq"]
    assert batch["positive_texts"] == ["p", "pp", "ppp"]
    assert batch["label"].tolist() == [1.0, 2.0, 3.0]
