"""Training-free encoders made of a causal language model, as sentence-transformers modules.

They show how good the embeddings of a backbone are without training. Each baseline is one entry of
`BASELINES`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules.transformer import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from transformers import PreTrainedTokenizerBase

from llm2comp.errors import UserError
from llm2comp.inference.precision import load_checked
from llm2comp.inference.token_batching import TokenBatched
from llm2comp.model.attention import configure_attention
from llm2comp.model.backbone import backbone_folder
from llm2comp.model.causal_lm.parts import body_of, token_table
from llm2comp.model.loading.checkpoint import read_config, read_model, read_tokenizer
from llm2comp.model.loading.stock_module import module_around
from llm2comp.model.loading.tokenizer import (
    first_token,
    needed_first_token,
    padding_token,
    require_fast,
    set_template,
)
from llm2comp.model.modules import UnsavableModule
from llm2comp.recipe_parts import Backbone
from llm2comp.utils.choices import Precision

MAX_TOKENS = 512
"""Maximum number of tokens of a text with its prompt. The text is truncated, the prompt is not."""


@dataclass(frozen=True)
class Prompt:
    """The words around a text.

    Attributes:
        before: words before the text.
        after: words after the text.
        again: if not empty, these words and the text once more follow the text.
    """

    before: str = ""
    after: str = ""
    again: str = ""


@dataclass(frozen=True)
class Baseline:
    """How the model reads a text, and which of its outputs become the embedding.

    With several prompts, the embedding is the mean of the embeddings that they give. If a prompt
    repeats the text, only the second copy is pooled. By default the first token is BOS, because a
    causal model computes unusual states for the first token. Without words around a text it is
    always BOS, because an empty text would otherwise have no token.

    Attributes:
        pooling: pooling mode of sentence-transformers.
        prompts: the prompts that the model reads a text with.
    """

    pooling: Literal["lasttoken", "mean", "weightedmean"]
    prompts: tuple[Prompt, ...] = (Prompt(),)


def _task(instruction: str, use: str) -> Prompt:
    return Prompt(
        f"In this task, you're {instruction} this sentence : \"", f'" {use} in one word:"'
    )


BASELINES = {
    "last-token": Baseline("lasttoken"),
    "mean": Baseline("mean"),
    "weighted-mean": Baseline("weightedmean"),
    "echo": Baseline("mean", (Prompt("Rewrite the sentence: ", again=", rewritten sentence: "),)),
    "prompteol": Baseline("lasttoken", (Prompt('This sentence : "', '" means in one word:"'),)),
    "metaeol": Baseline(
        "lasttoken",
        (
            _task(
                "presented with a text excerpt. Your task is to categorize the excerpt into a "
                "broad category such as 'Education', 'Technology', 'Health', 'Business', "
                "'Environment', 'Politics', or 'Culture'. These categories help in organizing "
                "content for better accessibility and targeting. For this task,",
                "should be classified under one general category",
            ),
            _task(
                "given a statement and you need to determine whether it's presenting an 'Opinion' "
                "or a 'Fact'. This distinction is vital for information verification, educational "
                "purposes, and content analysis. For this task,",
                "discriminates between opinion and fact",
            ),
            _task(
                "given a review from an online platform. Your task is to generate a rating for the "
                "product based on the review on a scale of 1-5, where 1 means 'extremely negative' "
                "and 5 means 'extremely positive'. For this task,",
                "reflects the sentiment",
            ),
            _task(
                "reading a personal diary entry. Your task is to identify the predominant emotion "
                "expressed, such as joy, sadness, anger, fear, or love. For this task,",
                "conveys the emotion",
            ),
            _task(
                "presented with two sentences. Your task is to assess whether the sentences convey "
                "the same meaning. Use 'identical', 'similar', 'different', or 'unrelated' to "
                "describe the relationship. To enhance the performance of this task,",
                "means",
            ),
            _task(
                "given a sentence and a phrase. Your task is to determine if the phrase can be a "
                "contextual synonym within the given sentence. Options include 'yes', 'no', or "
                "'partially'. To enhance the performance of this task,",
                "means",
            ),
            _task(
                "examining a news article. Your task is to extract the most critical fact from the "
                "article. For this task,",
                "encapsulates the key fact",
            ),
            _task(
                "reviewing a scientific abstract. Your task is to identify the main entities "
                "(e.g., proteins, diseases) and their relations (e.g., causes, treats). "
                "For this task,",
                "highlights the primary entity or relation",
            ),
        ),
    ),
}
"""The training-free encoders, by name.

- `last-token`: the last layer's state of the last token
- `mean`: the mean over all tokens
- `weighted-mean`: the mean over all tokens, weighted by position (SGPT, Muennighoff, 2022)
- `echo`: the text is read twice; the mean over the second copy (Springer et al., 2024)
- `prompteol`: the last token of `This sentence : "…" means in one word:"` (Jiang et al., 2023)
- `metaeol`: the mean over the eight published prompts of that kind, two each for classification,
  sentiment, paraphrases and information extraction; eight times the cost (Lei et al., 2024)
"""


class SecondCopy(UnsavableModule):
    """Hides all tokens but the second copy of a text from the pooling.

    If the text is empty, the last token stays visible.

    Args:
        around: number of tokens of the prompt, which belong to neither copy.
    """

    def __init__(self, around: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.around = around

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Return the features with `attention_mask` `(batch, length)` 1 on the second copy only."""
        mask = features["attention_mask"]
        tokens = mask.sum(1, keepdim=True)
        copy = ((tokens - self.around) // 2).clamp(min=1)
        return features | {"attention_mask": mask * (mask.cumsum(1) > tokens - copy)}


class Prompted(Transformer):
    """A transformer that reads `n` texts with each of `p` prompts, as `p x n` rows.

    The template of a tokenizer could also repeat the text. But then the tokenizer would apply it to
    every pair of the pieces that truncation cuts off, which is quadratic in the length of the text.

    Attributes:
        prompts: token ids (before, again, after) per prompt; set after loading.
    """

    prompts: Sequence[tuple[list[int], list[int], list[int]]]

    def get_config_dict(self) -> dict[str, Any]:
        """Return the configuration and the prompts, because the embeddings depend on both."""
        return {**super().get_config_dict(), "prompts": self.prompts}

    def preprocess(self, inputs: Sequence[Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Tokenize texts and put each prompt around them. The rows of one prompt are adjacent."""
        bare = super().preprocess(inputs, *args, **kwargs)
        texts = [
            ids[mask.bool()].tolist()
            for ids, mask in zip(bare["input_ids"], bare["attention_mask"], strict=True)
        ]
        rows = []
        for before, again, after in self.prompts:
            copies = 2 if again else 1
            room = (MAX_TOKENS - len(before) - len(again) - len(after)) // copies
            for full_text in texts:
                text = full_text[:room]
                rows.append([*before, *text, *([*again, *text] if again else []), *after])
        assert self.tokenizer is not None
        padded = self.tokenizer.pad({"input_ids": rows}, return_tensors="pt")
        return {**bare, **padded}


class MeanOverPrompts(UnsavableModule):
    """Averages the embeddings that a text has with each prompt.

    Args:
        prompts: number of prompts.
    """

    def __init__(self, prompts: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.prompts = prompts

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Turn `sentence_embedding` of shape `(p x n, hidden)` into `(n, hidden)`."""
        embeddings = features["sentence_embedding"]
        mean = embeddings.unflatten(0, (self.prompts, -1)).mean(0)
        return features | {"sentence_embedding": mean}


def require_baseline(name: str) -> None:
    """Check that there is a baseline of this name.

    Raises:
        UserError: if there is none.
    """
    if name not in BASELINES:
        raise UserError(f"unknown baseline {name!r}; the baselines are {', '.join(BASELINES)}")


def build(
    name: str,
    backbone_dir: Path,
    dtype: torch.dtype = torch.float32,
    *,
    add_bos: bool | None = True,
    trust_remote_code: bool = False,
) -> SentenceTransformer:
    """Build a training-free encoder.

    Args:
        name: key of `BASELINES`.
        backbone_dir: transformers folder of a causal language model.
        dtype: dtype of the weights in memory.
        add_bos: as `llm2comp.model.loading.tokenizer.first_token` takes it.
        trust_remote_code: run the Python code that comes with the model, if it has any.

    Returns:
        A model whose embeddings have unit length and the dimension of the backbone's hidden states.

    Raises:
        UserError: if there is no such baseline, the folder cannot be loaded, or the tokenizer has
            no fast version.
    """
    require_baseline(name)
    baseline = BASELINES[name]
    several_parts = len(baseline.prompts) > 1 or baseline.prompts[0].again
    source, trust = str(backbone_dir), {"trust_remote_code": trust_remote_code}
    config = read_config(backbone_dir, source, **trust)
    tokenizer = read_tokenizer(backbone_dir, source, split_special_tokens=True, **trust)
    require_fast(tokenizer)
    transformer = module_around(
        body_of(read_model(backbone_dir, source, config, dtype=dtype, **trust)),
        tokenizer,
        Prompted if several_parts else Transformer,
        # Without this, the chat template of a tokenizer would be put around every text.
        modality_config={"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        module_output_name="token_embeddings",
    )
    transformer.processor = tokenizer
    transformer.max_seq_length = MAX_TOKENS
    if tokenizer.pad_token is None:
        rows = token_table(transformer.model).num_embeddings
        tokenizer.pad_token = padding_token(tokenizer, tokenizer.backend_tokenizer, rows)
    configure_attention(transformer.model)
    pooled = _put_prompts(transformer, tokenizer, baseline, add_bos)
    return TokenBatched(modules=[transformer, *pooled, Normalize()], similarity_fn_name="cosine")


def load_baseline(
    name: str,
    backbone: str,
    dtype: Precision = "auto",
    *,
    add_bos: bool | None = True,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> SentenceTransformer:
    """Load a training-free encoder in a precision.

    Args:
        name: key of `BASELINES`.
        backbone: causal language model, as a recipe names it.
        dtype: as in `llm2comp.load`.
        add_bos: the recipe's `backbone.add_bos`.
        revision: of a hub model, as a recipe has it.
        trust_remote_code: as in `build`.

    Raises:
        UserError: if `build` raises it, or the backbone is not available.
    """
    folder = backbone_folder(backbone, revision, code=trust_remote_code)
    create = partial(build, name, folder, add_bos=add_bos, trust_remote_code=trust_remote_code)
    return load_checked(row_name(name, backbone), dtype, create, str(folder))


def row_name(name: str, backbone: str) -> str:
    """Return the name of a baseline in tables, with the backbone unless it is the default one."""
    return name if backbone == Backbone().name else f"{name} of {Path(backbone).name}"


def _put_prompts(
    transformer: Transformer,
    tokenizer: PreTrainedTokenizerBase,
    baseline: Baseline,
    add_bos: bool | None,
) -> list[torch.nn.Module]:
    """Make a transformer read texts with the prompts, and return the modules that pool its output.

    Prompts are tokenized apart from the text, so that the tokens of a text do not depend on them.
    """
    first = first_token(tokenizer, add_bos)
    if first is None and (add_bos or baseline.prompts == (Prompt(),)):
        first = needed_first_token(tokenizer)
    ids = [
        ([*([] if first is None else [first]), *before], again, after)
        for before, again, after in (
            tokenizer([part.before, part.again, part.after], add_special_tokens=False)["input_ids"]
            for part in baseline.prompts
        )
    ]
    before, again, after = ids[0]
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode=baseline.pooling)
    if not isinstance(transformer, Prompted):
        set_template(tokenizer.backend_tokenizer, before, after)
        return [pooling]
    transformer.prompts = ids
    set_template(tokenizer.backend_tokenizer, [], [])
    if again:
        return [SecondCopy(len(before) + len(again) + len(after)), pooling]
    return [pooling, MeanOverPrompts(len(ids))]
