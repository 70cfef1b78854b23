"""Ask the Hugging Face hub, briefly, before a library would retry for minutes."""

import huggingface_hub
from huggingface_hub import errors

from llm2comp.errors import UserError

REACH_SECONDS = 10.0


def require_model(name: str) -> None:
    """Check that a model is in the hub's local cache, or that the hub has it.

    Raises:
        UserError: if neither.
    """
    try:
        if isinstance(huggingface_hub.try_to_load_from_cache(name, "config.json"), str):
            return
        huggingface_hub.HfApi().model_info(name, timeout=REACH_SECONDS)
    except errors.HFValidationError as error:
        raise UserError(f"{name!r} is neither a folder nor of the form of a hub id") from error
    except errors.RepositoryNotFoundError as error:  # gated models too
        raise UserError(
            f"{name!r} is not a folder, and the hub has no such model that you may read; "
            "check the name, or log in with `hf auth login`"
        ) from error
    except Exception as error:  # whichever HTTP library is below, it has its own exceptions
        raise UserError(
            f"{name!r} is not a folder, and the hub cannot be reached to look for it "
            f"({type(error).__name__}); check the name or the network"
        ) from error
