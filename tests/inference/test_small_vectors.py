"""Files of small vectors say how they are read, search reads them, and mixing them is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sentence_transformers import SentenceTransformer

from llm2comp import api
from llm2comp.data import catalog
from llm2comp.errors import UserError
from llm2comp.evaluation import baselines
from llm2comp.inference import calibration, search, vector_format
from llm2comp.inference.embedding_files import content_of
from llm2comp.inference.precision import identity
from llm2comp.model.lineage import LINEAGE
from llm2comp.utils.checksums import CALIBRATION

PRECISIONS = ["float32", "float16", "int8", "uint8", "binary"]


@pytest.fixture(scope="module")
def model(tiny_backbone: Path) -> SentenceTransformer:
    built = baselines.build("weighted-mean", tiny_backbone)
    built.prompts = {"query": "Question: ", "document": "Passage: "}
    return built


@pytest.fixture
def passages(monkeypatch: pytest.MonkeyPatch, sentences: list[str]) -> list[str]:
    """Replace the packaged passages, from which ranges are measured, by few; return them."""
    texts = [f"{first} {second}" for first in sentences for second in sentences] * 4
    monkeypatch.setattr(catalog, "rows", lambda _: iter([{"text": text} for text in texts]))
    return texts


@pytest.fixture
def texts(tmp_path: Path, sentences: list[str]) -> Path:
    file = tmp_path / "texts.txt"
    file.write_text("".join(f"{text}\n" for text in sentences))
    return file


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_file_says_how_its_vectors_are_read(
    model: SentenceTransformer,
    passages: list[str],
    texts: Path,
    sentences: list[str],
    suffix: str,
    precision: Any,
) -> None:
    """What NumPy and Arrow read, restored as the guide says, is near the start of the embedding."""
    assert passages
    out = texts.with_suffix(suffix)
    assert api.encode_file(model, texts, out, dim=20, precision=precision) == len(sentences)
    if suffix == ".npz":
        with np.load(out, allow_pickle=False) as arrays:
            stored, said = arrays["embeddings"], json.loads(str(arrays["format"]))
    else:
        table = pq.read_table(out)
        assert table["text"].to_pylist() == sentences
        stored = np.stack(table["embedding"].to_numpy())
        said = json.loads(table.schema.metadata[b"llm2comp"])
    assert (said["dim"], said["precision"], said["prompt"]) == (20, precision, None)
    assert ("ranges" in said) == (precision in ("int8", "uint8"))
    expected = model.encode(sentences, truncate_dim=20, normalize_embeddings=True)
    if precision == "binary":
        bits = np.unpackbits(stored.view(np.uint8) ^ 0x80, axis=1, count=20)
        assert stored.shape == (len(sentences), 3)
        # A sign may turn where rounding changes a value near zero.
        assert (bits == (expected > 0)).mean() > 0.99
        return
    values = stored.astype(np.float32)
    if "ranges" in said:
        smallest, largest = np.array(said["ranges"])
        values += 128.5 if precision == "int8" else 0.5
        values = smallest + values * (largest - smallest) / 255
        inside = (expected >= smallest) & (expected <= largest)
        assert inside.mean() > 0.5  # the sample is small
        assert np.abs(values - expected)[inside].max() < 0.51 * (largest - smallest).max() / 255
    else:
        assert np.abs(values - expected).max() < 1e-3


def test_arrays_of_something_else_are_not_replaced(model: SentenceTransformer, texts: Path) -> None:
    out = texts.with_suffix(".npz")
    for content in (None, b"broken"):
        np.savez(out, weights=np.ones(3)) if content is None else out.write_bytes(content)
        before = out.read_bytes()
        with pytest.raises(UserError, match="arrays of something else; name another file"):
            api.encode_file(model, texts, out)
        assert out.read_bytes() == before
    out.unlink()
    for dim in (8, 16):  # embeddings are replaced
        api.encode_file(model, texts, out, dim=dim)
        assert np.load(out)["embeddings"].shape == (8, dim)


def test_npy_is_refused_where_it_could_not_say_how_it_is_read(
    model: SentenceTransformer, texts: Path
) -> None:
    out = texts.with_suffix(".npy")
    for precision in ("int8", "uint8", "binary"):
        with pytest.raises(UserError, match=rf"cannot say how vectors in {precision} are read"):
            api.encode_file(model, texts, out, precision=precision)  # type: ignore[arg-type]
    assert not out.exists()
    api.encode_file(model, texts, out, dim=8, precision="float16")
    assert np.load(out).dtype == np.float16
    assert np.load(out).shape[1] == 8


@pytest.mark.parametrize("precision", PRECISIONS)
def test_search_reads_a_file_of_vectors_and_finds_what_it_finds_in_the_texts(
    model: SentenceTransformer,
    passages: list[str],
    texts: Path,
    sentences: list[str],
    precision: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert passages
    api_options = {"dim": 24, "precision": precision}
    out = texts.with_suffix(".parquet")
    expected = api.search(model, texts, sentences[3], top_k=3, **api_options)
    api.encode_file(model, texts, out, prompt="document", **api_options)
    encoded: list[str] = []
    embed = search.embed

    def spy(model: Any, texts: list[str], *rest: Any) -> Any:
        encoded.extend(texts)
        return embed(model, texts, *rest)

    monkeypatch.setattr(search, "embed", spy)
    monkeypatch.setattr(search, "CHECKED", 2)
    for options in ({}, api_options):
        found = api.search(model, out, sentences[3], top_k=3, **options)
        assert [hit.row for hit in found] == [hit.row for hit in expected]
        assert [hit.score for hit in found] == pytest.approx(
            [hit.score for hit in expected], abs=1e-5
        )
    assert encoded == 2 * [sentences[3], sentences[0], sentences[-1]]


def test_a_search_in_whole_float32_vectors_has_the_scores_of_the_texts(
    model: SentenceTransformer, texts: Path, sentences: list[str]
) -> None:
    out = texts.with_suffix(".parquet")
    api.encode_file(model, texts, out, prompt="document")
    one, other = (api.search(model, file, sentences[0], top_k=8) for file in (texts, out))
    assert [hit.text for hit in one] == [hit.text for hit in other]
    assert [h.score for h in one] == pytest.approx([h.score for h in other], abs=1e-6)


def test_mixing_sizes_encoders_and_prompts_is_refused(
    model: SentenceTransformer, passages: list[str], texts: Path, tiny_backbone: Path
) -> None:
    assert passages
    out = texts.with_suffix(".parquet")
    api.encode_file(model, texts, out, prompt="document", dim=16, precision="int8")
    for options in ({"dim": 8}, {"precision": "binary"}, {"dim": 32, "precision": "int8"}):
        with pytest.raises(UserError, match="holds vectors of 16 dimensions in int8; leave out"):
            api.search(model, out, "whales", **options)
    other = baselines.build("last-token", tiny_backbone)
    other.prompts = model.prompts
    with pytest.raises(UserError, match="another encoder"):
        api.search(other, out, "whales")
    for precision in PRECISIONS:
        api.encode_file(model, texts, out, precision=precision)  # type: ignore[arg-type]
        with pytest.raises(UserError, match="encoded with no prompt; encode its texts again"):
            api.search(model, out, "whales")


def test_one_file_of_two_encoders_is_refused(
    model: SentenceTransformer, texts: Path, tiny_backbone: Path
) -> None:
    """Such as Arrow makes of two tables; it keeps what the first says of itself."""
    other = baselines.build("last-token", tiny_backbone)
    other.prompts = model.prompts
    tables = []
    for one in (model, other):
        api.encode_file(one, texts, texts.with_suffix(".parquet"), prompt="document")
        tables.append(pq.read_table(texts.with_suffix(".parquet")))
    mixed = texts.with_name("mixed.parquet")
    pq.write_table(pa.concat_tables(tables), mixed)
    for one in (model, other):
        with pytest.raises(UserError, match="holds vectors of another encoder; encode its texts"):
            api.search(one, mixed, "whales")


def test_vectors_that_are_not_what_the_file_says_are_refused(
    model: SentenceTransformer, texts: Path
) -> None:
    out = texts.with_suffix(".parquet")
    api.encode_file(model, texts, out, prompt="document")
    table = pq.read_table(out)
    without = table.select(["text"])
    short = table.set_column(1, "embedding", pa.array([[1.0] * 8] * 8, pa.list_(pa.float32(), 8)))
    unknown = table.replace_schema_metadata({"llm2comp": '{"dim": 32}'})
    for wrong in (without, short, unknown):
        pq.write_table(wrong, out)
        with pytest.raises(UserError, match="its vectors are not those that llm2comp wrote"):
            api.search(model, out, "whales")


def test_a_file_of_an_older_version_is_encoded_again(
    model: SentenceTransformer, texts: Path, sentences: list[str]
) -> None:
    """Such a .parquet file has the same columns, but does not say how its vectors are stored."""
    out = texts.with_suffix(".parquet")
    api.encode_file(model, texts, out)
    table = pq.read_table(out).replace_schema_metadata(None)
    pq.write_table(table, out)
    assert content_of(out) is None
    (hit,) = api.search(model, out, sentences[5], top_k=1)
    assert hit == pytest.approx(api.search(model, texts, sentences[5], top_k=1)[0])


def test_a_dimension_too_many_is_refused_before_anything_is_written(
    model: SentenceTransformer, texts: Path
) -> None:
    for call in (
        lambda: api.encode(model, ["a"], dim=33),
        lambda: api.encode_file(model, texts, texts.with_suffix(".npy"), dim=33),
        lambda: api.search(model, texts, "whales", dim=33),
    ):
        with pytest.raises(UserError, match="dim is 33; the embeddings have 32 dimensions"):
            call()
    assert list(texts.parent.iterdir()) == [texts]


def test_the_sample_is_kept_with_the_encoder_and_used_again(
    model: SentenceTransformer,
    passages: list[str],
    tmp_path: Path,
    empty_cache: Path,
    monkeypatch: Any,
) -> None:
    folder = tmp_path / "encoder"
    model.save_pretrained(str(folder))
    (folder / LINEAGE).write_text("{}")
    before = identity([], str(folder))
    first = vector_format_of(model, 12, folder)
    kept = np.load(folder / CALIBRATION)
    assert kept.shape == (calibration.TEXTS, 32)
    assert not empty_cache.exists()
    assert identity([], str(folder)) == before  # so that the check of bfloat16 is not done again
    short = kept[:, :12] / np.linalg.norm(kept[:, :12], axis=1, keepdims=True)
    assert first.ranges == pytest.approx(np.stack([short.min(axis=0), short.max(axis=0)]))
    monkeypatch.setattr(calibration, "embed", None)  # it is not embedded again
    assert np.array_equal(vector_format_of(model, 12, folder).ranges, first.ranges)
    (folder / CALIBRATION).write_bytes(b"damaged")
    monkeypatch.undo()
    monkeypatch.setattr(catalog, "rows", lambda _: iter([{"text": t} for t in passages]))
    assert np.array_equal(vector_format_of(model, 12, folder).ranges, first.ranges)


def test_the_sample_of_a_model_of_others_is_kept_in_the_cache(
    model: SentenceTransformer, passages: list[str], tmp_path: Path, empty_cache: Path
) -> None:
    assert passages
    folder = tmp_path / "theirs"
    model.save_pretrained(str(folder))
    files = sorted(folder.rglob("*"))
    vector_format_of(model, 12, folder)
    assert sorted(folder.rglob("*")) == files
    assert len(list((empty_cache / "calibration").iterdir())) == 1


def vector_format_of(
    model: SentenceTransformer, dim: int, folder: Path
) -> vector_format.VectorFormat:
    return calibration.vector_format(model, dim, "int8", str(folder))
