"""Write an encoder with one memory token as a model whose pooling is that of the last token.

vLLM, text-embeddings-inference and llama.cpp run the transformer with code of their own. They read
the pooling mode, and no other module. If the one memory token is an ordinary entry of the
vocabulary that the tokenizer puts after every text, the output of the last token is the embedding.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from tokenizers import Tokenizer

from llm2comp.errors import UserError
from llm2comp.inference.embed import embed
from llm2comp.inference.load import load, trusted
from llm2comp.inference.vector_format import smallest_cosine
from llm2comp.model import released
from llm2comp.model.folder.card import model_card
from llm2comp.model.folder.layout import write_layout
from llm2comp.model.folder.reference import SAME, TEXTS, Reference, embed_alone
from llm2comp.model.lineage import LINEAGE, Lineage
from llm2comp.model.loading.tokenizer import FILE, with_special_token
from llm2comp.model.matryoshka.first_tokens import keep_memory_tokens, lineage_with, plain_tokenizer
from llm2comp.model.memory_tokens import memory_token_names
from llm2comp.model.prompt_format import DEFAULT_FORMAT
from llm2comp.utils.checksums import write_checksums
from llm2comp.utils.files import atomic_folder, require_folder

Json = dict[str, Any]


@dataclass(frozen=True)
class Difference:
    """How much an export differs from its encoder.

    Attributes:
        difference: largest cosine distance between the two embeddings of a text.
        allowed: largest cosine distance that counts as rounding.
    """

    difference: float
    allowed: float

    def __str__(self) -> str:
        return f"largest cosine difference {self.difference:.1e} ({self.allowed:g} allowed)"

    @property
    def passed(self) -> bool:
        """Whether the difference is allowed; NaN is not."""
        return self.difference <= self.allowed


def texts_to_compare(encoder: SentenceTransformer) -> list[str]:
    """Return the texts with which an export is compared: some, each prompt before each of them."""
    prompts = dict.fromkeys(("", *filter(None, encoder.prompts.values())))
    return [prompt + text for prompt in prompts for text in (*TEXTS, "")]


def export(name: str, out: Path, memory_tokens: int | None = None) -> Difference:
    """Write an encoder folder with pooling of the last token, without `WordWeights`.

    The folder is compared with the encoder before it appears: texts with each prompt, in a padded
    batch and alone.

    Args:
        name: encoder, as `llm2comp.load` takes it.
        out: folder to write.
        memory_tokens: as `llm2comp.load` takes it; 1 of an encoder with several.

    Returns:
        The difference that the comparison found.

    Raises:
        UserError: if the encoder cannot be loaded, its embedding is not the output of one causal
            memory token, `out` holds something else, or the embeddings differ.
    """
    if out.exists() and not _is_export(out):
        raise UserError(f"{out} exists and is not an export; choose another --out")
    require_folder(out)
    source, lineage = _require_one_causal_token(name, memory_tokens)
    encoder = load(name, "float32", memory_tokens=memory_tokens).to("cpu")
    texts = texts_to_compare(encoder)
    expected = embed(encoder, texts, len(texts))
    lineage = lineage_with(lineage, encoder, memory_tokens)
    reference = lineage.reference or Reference.of(embed_alone(encoder))
    del encoder
    with atomic_folder(out) as partial:
        needed = _write_model(source, partial, name, memory_tokens)
        stock = SentenceTransformer(
            str(partial),
            device="cpu",
            trust_remote_code=trusted(),
            model_kwargs={"dtype": torch.float32},  # whatever the folder is written in
        )
        together, alone = embed(stock, texts, len(texts)), stock.encode(texts, batch_size=1)
        cosines = [smallest_cosine(expected, rows) for rows in (together, alone)]
        check = Difference(difference=max(1 - min(cosines), 0.0), allowed=SAME)
        if not check.passed:
            raise UserError(
                f"{out} is not written, because it does not encode like {name}: {check}"
            )
        lineage = lineage.model_copy(update={"last_token": True, "reference": reference})
        card = model_card(lineage, expected.shape[1], needed)
        (partial / "README.md").write_text(card, encoding="utf-8")
        lineage.write(partial)
        write_checksums(partial)
    return check


def _require_one_causal_token(name: str, memory_tokens: int | None) -> tuple[Path, Lineage]:
    """Return the folder of an encoder and its lineage.

    Raises:
        UserError: if the output of its last token is not its embedding in a server.
    """
    folder = Path(released.resolve_encoder(name))
    if not folder.is_dir():
        raise UserError(
            f"{name} is no folder here, and the hub does not show that llm2comp made it; download "
            "it, and name its folder"
        )
    if not (folder / LINEAGE).is_file():
        raise UserError(f"{name} has no memory tokens, because llm2comp did not make it")
    lineage = Lineage.read(folder)
    if lineage.compiled or lineage.last_token:
        raise UserError(f"{name} is an export already; name the encoder that it was made from")
    remedy = "serve it with `llm2comp serve`, sentence-transformers or infinity"
    tokens = lineage.num_memory_tokens
    if (memory_tokens or tokens) != 1:
        raise UserError(
            f"{name} has {memory_tokens or tokens} memory tokens, and pooling of the last token "
            "reads one; train an encoder with memory.tokens=1, or with matryoshka_tokens and "
            f"export it with --memory-tokens 1, or {remedy}"
        )
    if lineage.method is None or lineage.method[2] != DEFAULT_FORMAT:
        raise UserError(f"{name} has a prompt after the text, which servers may not put; {remedy}")
    if not lineage.stages[-1].causal:
        raise UserError(
            f"{name} has bidirectional attention, and servers compute causal attention; train an "
            f"encoder with attention: causal, or {remedy}"
        )
    return folder, lineage


def _is_export(folder: Path) -> bool:
    return (folder / LINEAGE).is_file() and Lineage.read(folder).last_token


def _write_model(
    source: Path, folder: Path, name: str, memory_tokens: int | None
) -> dict[str, str]:
    """Write all that a client reads.

    Returns:
        The versions that a client needs, by package.
    """
    encoder = SentenceTransformer(str(source), device="cpu", trust_remote_code=trusted())
    if memory_tokens is not None:
        keep_memory_tokens(encoder, memory_tokens, name)
    pooling = Pooling(encoder.get_embedding_dimension(), pooling_mode="lasttoken")
    SentenceTransformer(
        modules=[encoder[0], pooling, Normalize()],
        prompts={key: prompt or "" for key, prompt in encoder.prompts.items()},
        similarity_fn_name="cosine",
    ).save_pretrained(str(folder), create_model_card=False)
    plain = plain_tokenizer(encoder, source)
    *first, token = plain.encode("").ids
    (memory,) = memory_token_names(1)
    backend = with_special_token(plain, memory, token)
    before = [str(backend.id_to_token(one)) for one in first]
    state = json.loads(backend.to_str())
    state["post_processor"] = _template(before, first, memory, token)
    Tokenizer.from_str(json.dumps(state)).save(str(folder / FILE))
    # llama.cpp reads the ids in the configuration, and whether it puts them around a text here.
    _update(folder / "config.json", dict(zip(["bos_token_id"], first, strict=False)))
    _update(folder / "config.json", {"eos_token_id": token})
    adds = {"eos_token": memory, "add_bos_token": bool(first), "add_eos_token": True}
    _update(folder / "tokenizer_config.json", adds)
    return write_layout(folder)


def _template(before: list[str], first: list[int], name: str, token: int) -> Json:
    """Return the post-processor of `tokenizer.json` that puts tokens around a text by their names.

    llama.cpp knows BOS and EOS in it by their names.
    """
    ids = dict(zip([*before, name], [*first, token], strict=True))
    front, back = (
        [{"SpecialToken": {"id": one, "type_id": 0}} for one in part] for part in (before, [name])
    )
    text, other = ({"Sequence": {"id": one, "type_id": 0}} for one in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [*front, text, *back],
        "pair": [*front, text, other, *back],
        "special_tokens": {
            one: {"id": one, "ids": [number], "tokens": [one]} for one, number in ids.items()
        },
    }


def _update(file: Path, changes: Json) -> None:
    content = json.loads(file.read_text(encoding="utf-8")) | changes
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
