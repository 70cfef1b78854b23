"""The model card on the hub: that of the folder, with the name on the hub and MTEB's scores."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard
from yaml import YAMLError

from llm2comp.errors import UserError, one_line
from llm2comp.model.folder.card import FOLDER


def card_on_hub(
    file: Path,
    repo: str,
    revision: str | None,
    results: Sequence[EvalResult],
    licence: str | None = None,
) -> ModelCard:
    """Return the card of a folder as the hub shows it.

    What a person wrote into the card is kept. The code loads the encoder by its name on the hub.

    Args:
        file: the folder's card.
        repo: name on the hub.
        revision: branch that the code loads; None is the main one.
        results: scores to add to the metadata. A score of the card on the same data is replaced.
        licence: of the encoder, for a card without one.

    Raises:
        UserError: if there is no card, or its metadata cannot be read.
    """
    try:
        card = ModelCard(file.read_bytes().decode("utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing; the hub shows it as the page of the model") from error
    except (ValueError, TypeError, YAMLError) as error:
        raise UserError(
            f"{file}: the metadata between the first two lines --- cannot be used "
            f"({one_line(error)}); mend them"
        ) from error
    data: Any = card.data
    data.license = data.license or licence
    if results:
        known = {result.unique_identifier for result in results}
        others = [r for r in data.eval_results or [] if r.unique_identifier not in known]
        data.eval_results = [*others, *results]
        data.model_name = data.model_name or repo.partition("/")[2]
        data.tags = list(dict.fromkeys([*(data.tags or []), "mteb"]))
    card.text = _with_name(card.text, repo, revision)
    return card


def _with_name(text: str, repo: str, revision: str | None) -> str:
    """Return the text of a card whose code loads a model of the hub in place of a folder."""
    at = f', revision="{revision}"' if revision else ""
    download = f'hf_hub_download("{repo}", "llm2comp.json"{at})'
    imports, following = "import json\n\n", "reference = "
    return (
        text.replace(f'open("{FOLDER}/llm2comp.json")', f"open({download})")
        .replace(
            imports + following,
            f"{imports}from huggingface_hub import hf_hub_download\n\n{following}",
        )
        .replace(f'"{FOLDER}"', f'"{repo}"{at}')
    )
