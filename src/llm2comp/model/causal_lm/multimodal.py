"""Models that read images or sound too: take the language model out of them."""

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from llm2comp.errors import UserError


def language_model(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """Return the causal language model inside a multimodal model; others are returned as they are.

    Its decoder and its head are moved into the class of the text model, so that no weight is
    copied, and the encoder folder has no part that a text does not need.

    Args:
        model: as `AutoModelForCausalLM` loads it.
        name: of the backbone, for the message.

    Raises:
        UserError: if transformers has no class for the text model alone.
    """
    config = model.config.get_text_config(decoder=True)
    if config is model.config:
        return model
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(
            f"backbone {name!r} is refused: it is multimodal, and transformers has no class for "
            f"its text model ({config.model_type}) alone; choose another backbone"
        )
    config.tie_word_embeddings = model.config.tie_word_embeddings
    with torch.device("meta"):
        text = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    setattr(text, text.base_model_prefix, model.get_decoder())
    text.set_output_embeddings(model.get_output_embeddings())
    return text
