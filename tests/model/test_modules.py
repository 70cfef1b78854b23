"""Merging memory tokens: equality with a slow reference, invariances, and refusals."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, WordWeights
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import llm2comp
from llm2comp import recipe
from llm2comp.cli.app import app
from llm2comp.data import catalog
from llm2comp.errors import UserError
from llm2comp.evaluation import baselines
from llm2comp.model import encoder
from llm2comp.model.memory_tokens import add_memory_tokens, memory_token_names
from llm2comp.model.modules import MergeMemory, merge_memory
from llm2comp.model.prompt_format import DEFAULT_FORMAT, PromptFormat

RUNNER = CliRunner()
K, HIDDEN = 8, 16
MERGING = 0.3
"""A threshold at which some of the tiny model's memory tokens merge."""


def make_encoder(
    backbone: Path, prompt_format: PromptFormat = DEFAULT_FORMAT, k: int = K
) -> SentenceTransformer:
    model = AutoModelForCausalLM.from_pretrained(backbone)
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    extended = add_memory_tokens(
        model, tokenizer, recipe.Memory(tokens=k), seed=0, prompt_format=prompt_format
    )
    return encoder.assemble(
        model, extended, k, causal=False, max_length=64, prompt_format=prompt_format
    )


def pooled(states: torch.Tensor, threshold: float | None) -> torch.Tensor:
    """Pool memory states `(batch, k, hidden)` that follow one token, without `Normalize`."""
    batch = len(states)
    names = memory_token_names(K)
    weigh: nn.Module = WordWeights([*names, "text"], dict.fromkeys(names, 1.0), 0.0)
    if threshold is not None:
        weigh = MergeMemory(weigh, threshold)
    text = torch.full((batch, 1, HIDDEN), 7.0)
    features = {
        "token_embeddings": torch.cat([text, states], 1),
        "input_ids": torch.tensor([K, *range(K)]).repeat(batch, 1),
        "attention_mask": torch.ones(batch, K + 1, dtype=torch.long),
    }
    return nn.Sequential(weigh, Pooling(HIDDEN, "mean"))(features)["sentence_embedding"]


def alike(*shape: int, seed: int = 0, shared: float = 1.0) -> torch.Tensor:
    """Return states of different lengths that share a direction."""
    generator = torch.Generator().manual_seed(seed)
    base = shared * torch.randn(shape[0], 1, shape[-1], generator=generator)
    states = base + torch.randn(shape, generator=generator)
    return states * (0.5 + torch.rand(*shape[:-1], 1, generator=generator))


def reference(states: torch.Tensor, threshold: float) -> tuple[torch.Tensor, int]:
    """Pool one text by the definition of average linkage, and return its number of clusters."""
    unit = nn.functional.normalize(states.double(), dim=-1)
    cosine = (unit @ unit.T).tolist()
    clusters = [[i] for i in range(len(states))]
    while len(clusters) > 1:
        pairs = [(a, b) for a in range(len(clusters)) for b in range(a)]

        def average(pair: tuple[int, int]) -> float:
            first, second = (clusters[at] for at in pair)
            return float(np.mean([cosine[i][j] for i in first for j in second]))

        best = max(pairs, key=average)
        if average(best) < threshold:
            break
        later, earlier = best
        clusters[earlier] += clusters.pop(later)
    means = torch.stack([states[cluster].mean(0) for cluster in clusters])
    return means.mean(0), len(clusters)


def test_equals_cluster_means_averaged_one_by_one() -> None:
    sizes = set()
    for seed in range(5):
        states = alike(6, K, HIDDEN, seed=seed)
        for threshold in (0.2, 0.4, 0.6, 0.8):
            expected = [reference(text, threshold) for text in states]
            sizes |= {count for _, count in expected}
            torch.testing.assert_close(
                pooled(states, threshold),
                torch.stack([embedding for embedding, _ in expected]),
                atol=1e-6,
                rtol=1e-6,
            )
    assert sizes == set(range(1, K + 1))  # from one cluster to no merging


@pytest.mark.parametrize("threshold", [0.9, 1.0])
def test_duplicates_count_once(threshold: float) -> None:
    distinct = alike(20, 3, HIDDEN, shared=0.0)
    states = distinct[:, [0, 0, 0, 0, 0, 0, 1, 2]]
    torch.testing.assert_close(pooled(states, threshold), distinct.mean(1))


def test_all_merged_is_the_plain_mean() -> None:
    states = alike(4, K, HIDDEN, shared=20.0)
    assert reference(states[0], 0.01)[1] == 1
    torch.testing.assert_close(pooled(states, 0.01), pooled(states, None))


def test_gradients_are_those_of_the_definition() -> None:
    ours, theirs = (alike(1, K, HIDDEN).requires_grad_() for _ in range(2))
    expected, clusters = reference(theirs[0], 0.5)
    assert 1 < clusters < K
    expected.square().sum().backward()
    pooled(ours, 0.5).square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_states_without_direction_do_not_merge() -> None:
    states = alike(4, K, HIDDEN)
    states[0] = 0
    states[1, 2:4] = 0
    states[2, 5] = torch.nan
    states[3, 5] = torch.inf
    merged = pooled(states, 0.6)
    assert merged[0].eq(0).all()
    expected, clusters = reference(states[1], 0.6)
    assert 3 < clusters < K  # both zeros stay alone, and some others merge
    torch.testing.assert_close(merged[1], expected)
    assert not merged[2:].isfinite().any()  # no crash here: encode_file names the row


@pytest.mark.parametrize("k", [1, K])
@pytest.mark.parametrize("threshold", [0.99999, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_high_threshold_changes_nothing(
    tiny_backbone: Path, sentences: list[str], threshold: float, k: int, dtype: torch.dtype
) -> None:
    model = make_encoder(tiny_backbone, k=k).to(dtype)
    plain = model.encode(sentences)
    np.testing.assert_allclose(merge_memory(model, threshold).encode(sentences), plain, atol=1e-6)


def test_the_last_threshold_counts(tiny_backbone: Path, sentences: list[str]) -> None:
    model = make_encoder(tiny_backbone)
    plain = model.encode(sentences)
    assert np.abs(merge_memory(model, MERGING).encode(sentences) - plain).max() > 0.01
    np.testing.assert_allclose(merge_memory(model, 1.0).encode(sentences), plain, atol=1e-6)


def test_batch_order_and_padding_side_do_not_matter(
    tiny_backbone: Path, sentences: list[str]
) -> None:
    model = merge_memory(make_encoder(tiny_backbone), MERGING)
    texts = [*sentences, "", "a", "Tomatoes! " * 100]
    alone = np.stack([model.encode(text) for text in texts])
    for side in ("left", "right"):
        model.tokenizer.padding_side = side
        for size in (2, len(texts)):
            np.testing.assert_allclose(model.encode(texts, batch_size=size), alone, atol=1e-5)
        np.testing.assert_allclose(model.encode(texts[::-1])[::-1], alone, atol=1e-5)


def test_extra_memory_tokens_do_not_matter(tiny_backbone: Path, sentences: list[str]) -> None:
    model = make_encoder(tiny_backbone, PromptFormat(extra_tokens=True))
    with torch.no_grad():
        states = model[0](model.tokenize(sentences[:1]))["token_embeddings"][0, -K:]
    expected, clusters = reference(states, MERGING)
    assert 1 < clusters < K
    merged = merge_memory(model, MERGING).encode(sentences[0], convert_to_tensor=True)
    unit = nn.functional.normalize(expected, dim=0)
    torch.testing.assert_close(merged, unit, atol=1e-6, rtol=0)


def test_refuses_models_that_pool_over_anything_else(tiny_backbone: Path) -> None:
    for model in (
        baselines.build("weighted-mean", tiny_backbone),
        make_encoder(tiny_backbone, PromptFormat(pooling="text")),
    ):
        before = list(model.children())
        with pytest.raises(UserError, match="does not pool over memory tokens"):
            merge_memory(model, 0.8)
        assert list(model.children()) == before


@pytest.mark.parametrize("threshold", [0.0, -0.5, 1.01, float("nan")])
def test_refuses_thresholds_out_of_range(tiny_backbone: Path, threshold: float) -> None:
    with pytest.raises(UserError, match=r"threshold .* is not above 0 and at most 1"):
        merge_memory(make_encoder(tiny_backbone), threshold)


def test_a_merging_model_cannot_become_a_folder(tiny_backbone: Path, tmp_path: Path) -> None:
    model = merge_memory(make_encoder(tiny_backbone), 0.8)
    with pytest.raises(UserError, match="in memory only"):
        model.save_pretrained(str(tmp_path / "model"))


@pytest.fixture(scope="module")
def folder(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "memory"
    make_encoder(tiny_backbone).save_pretrained(str(path))
    return path


@pytest.fixture
def texts(tmp_path: Path, sentences: list[str]) -> Path:
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(sentences) + "\n")
    return file


def test_encode_writes_merged_embeddings(
    folder: Path, texts: Path, sentences: list[str], tmp_path: Path
) -> None:
    embeddings = []
    for name, options in (("plain", []), ("merged", ["--merge", str(MERGING)])):
        out = tmp_path / f"{name}.npy"
        command = ["encode", str(folder), str(texts), "--out", str(out), "--dtype", "float32"]
        result = RUNNER.invoke(app, [*command, *options])
        assert result.exit_code == 0, result.output
        embeddings.append(np.load(out))
    plain, found = embeddings
    assert np.abs(found - plain).max() > 0.01
    np.testing.assert_allclose(found, merged(folder).encode(sentences), atol=1e-5)


def merged(folder: Path) -> SentenceTransformer:
    return merge_memory(SentenceTransformer(str(folder), device="cpu"), MERGING)


def test_search_merges_query_and_texts(folder: Path, texts: Path, sentences: list[str]) -> None:
    query = "an odd query"
    scores = [
        model.encode_document(sentences) @ model.encode_query(query)
        for model in (merged(folder), SentenceTransformer(str(folder), device="cpu"))
    ]
    wanted, plain = (sorted(some.tolist(), reverse=True) for some in scores)
    options = {"dtype": "float32", "merge_threshold": MERGING, "top_k": 8}
    hits = llm2comp.search(folder, texts, query, **options)
    assert [hit.score for hit in hits] == pytest.approx(wanted, abs=1e-5)
    assert np.abs(np.subtract(wanted, plain)).max() > 1e-3
    command = ["search", str(folder), str(texts), query, "--top-k", "8", "--dtype", "float32"]
    result = RUNNER.invoke(app, [*command, "--merge", str(MERGING)])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [f"{hit.score:.3f}  {hit.text}" for hit in hits]


def test_analyze_merges(folder: Path, texts: Path, sentences: list[str], tmp_path: Path) -> None:
    options = {"data": str(texts), "dtype": "float32", "merge_threshold": MERGING}
    (found,) = llm2comp.analyze([folder], tmp_path / "out", **options)
    wanted, plain = (
        np.linalg.svd(model.encode_query(sentences), compute_uv=False)
        for model in (merged(folder), SentenceTransformer(str(folder), device="cpu"))
    )
    np.testing.assert_allclose(found.spectrum.singular_values[:8], wanted, atol=1e-4)
    assert np.abs(wanted - plain).max() > 1e-3


def test_many_files_are_encoded_merged(
    folder: Path, texts: Path, sentences: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "vectors"
    options = {"dtype": "float32", "merge_threshold": MERGING}
    llm2comp.encode_files(folder, texts.parent / "*.txt", out, **options)
    found = np.array(pq.read_table(out / "texts.parquet")["embedding"].to_pylist())
    np.testing.assert_allclose(found, merged(folder).encode(sentences), atol=1e-5)
    with pytest.raises(UserError, match=f"vectors with merge_threshold {MERGING}, and not none"):
        llm2comp.encode_files(folder, texts.parent / "*.txt", out, dtype="float32")


@pytest.mark.parametrize("command", ["encode", "search", "evaluate"])
@pytest.mark.parametrize(
    ("stock", "threshold", "message"),
    [(True, "0.8", "does not pool over memory tokens"), (False, "1.5", "threshold 1.5")],
)
def test_a_mistake_is_one_line_and_status_2(
    tiny_backbone: Path,
    folder: Path,
    texts: Path,
    tmp_path: Path,
    command: str,
    stock: bool,
    threshold: str,
    message: str,
) -> None:
    if stock:
        folder = tmp_path / "stock"
        baselines.build("last-token", tiny_backbone).save_pretrained(str(folder))
    rest = {
        "encode": [str(texts), "--out", str(tmp_path / "x.npy")],
        "search": [str(texts), "whales"],
        "evaluate": ["--tasks", "STS17"],
    }
    result = RUNNER.invoke(app, [command, str(folder), *rest[command], "--merge", threshold])
    assert result.exit_code == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("llm2comp: ")]
    assert message in line
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "x.npy").exists()


@pytest.mark.usefixtures("empty_cache")
def test_evaluate_names_the_merged_row_and_leaves_baselines(
    folder: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = [
        dict(split="test", file="track5", score=str(i % 6), sentence1=f"a {i}", sentence2=f"b {i}")
        for i in range(12)
    ]
    monkeypatch.setattr(catalog, "rows", lambda name: iter(rows if name == "stsb" else []))
    monkeypatch.chdir(folder.parent)
    baseline = ["--baseline", "last-token", "--backbone", str(tiny_backbone)]
    command = ["evaluate", folder.name, *baseline, "--tasks", "STS17", "--merge", "0.80"]
    result = RUNNER.invoke(app, [*command, "--out", str(tmp_path / "scores")])
    assert result.exit_code == 0, result.output
    written = sorted(path.name for path in (tmp_path / "scores").iterdir())
    assert written == ["last-token__of__tiny-llama", "memory__merged__at__0.8"]
    assert "\nmemory, merged at 0.8" in result.stdout
    assert "\nlast-token of tiny-llama " in result.stdout
