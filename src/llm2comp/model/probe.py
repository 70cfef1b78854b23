"""Run a backbone, to check the properties that the method needs."""

import torch
from transformers import PreTrainedModel

from llm2comp.errors import UserError
from llm2comp.model.causal_lm import body_of, token_table


@torch.no_grad()
def probe(model: PreTrainedModel, name: str, *, bidirectional: bool = True) -> None:
    """Run a model to check the properties that the method needs.

    Padding on either side must not change the states of a text. A change of the last token must
    change the first state with `is_causal=False`, and must not change it otherwise.

    Args:
        model: in evaluation mode.
        name: of the backbone, for the message.
        bidirectional: whether to check the properties with `is_causal=False` too.

    Raises:
        UserError: naming the first property that does not hold.
    """
    body = body_of(model)
    size = token_table(model).num_embeddings
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(min(100, size // 2), size, (1, 6), generator=generator).to(model.device)
    changed = text.clone()
    changed[0, -1] = (changed[0, -1] + 1) % size
    # With bidirectional attention, rounding in float32 changes the states of SmolLM2's 30 layers
    # by 1.1e-4 of their norm. A broken property changes states by a tenth and more.
    tolerance = 1e-3 if model.dtype == torch.float32 else 5e-2

    def states(ids: torch.Tensor, left: int = 0, right: int = 0, **mode: bool) -> torch.Tensor:
        padded = torch.nn.functional.pad(ids, (left, right), value=1)
        mask = torch.nn.functional.pad(torch.ones_like(ids), (left, right))
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        output = body(padded, attention_mask=mask, position_ids=positions, **mode)
        states: torch.Tensor = output.last_hidden_state
        return states[:, left : left + ids.shape[1]].float()

    def differ(first: torch.Tensor, second: torch.Tensor) -> bool:
        return bool((first - second).norm() > tolerance * first.norm())

    def require(holds: bool, broken: str) -> None:
        if not holds:
            raise UserError(f"backbone {name!r} is refused: {broken}")

    for mode in ({}, {"is_causal": False}) if bidirectional else ({},):
        kind = "bidirectional" if mode else "causal"
        plain = states(text, **mode)
        first_differs = differ(plain[:, :1], states(changed, **mode)[:, :1])
        if mode:
            require(first_differs, "its attention stays causal when asked to be bidirectional")
        else:
            require(not first_differs, "its attention is not causal")
        require(
            not differ(plain, states(text, left=3, **mode)), f"left padding changes {kind} states"
        )
        require(
            not differ(plain, states(text, right=3, **mode)), f"right padding changes {kind} states"
        )
