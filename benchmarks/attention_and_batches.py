"""The body of SmolLM2 by attention and tokens a batch: share of its linear layers alone.

For each length of text and size of batch, in turn: the linear layers of all blocks and
nothing else (the roofline), the body with PyTorch's fused attention, and the body with
llm2comp.attention. In bfloat16 where the processor has it.

    python benchmarks/attention_and_batches.py
"""

import torch
from harness import in_turn, report

from llm2comp.inference.load import load_in
from llm2comp.model import encoder
from llm2comp.model.attention import use_matmul_attention, use_sdpa
from llm2comp.utils.hardware import compute_dtype, retain_freed_memory

MODEL = "smollm2-135m-llm2comp"
LENGTHS = (32, 64, 128, 256, 512, 1024)
BATCHES = (1024, 2048, 8192)
ROUNDS = 3


@torch.inference_mode()
def main() -> None:
    """Measure, print a table, write the numbers."""
    retain_freed_memory()  # as the command line does
    dtype = compute_dtype("auto")
    body = encoder.encoder_body(load_in(MODEL, dtype))
    layers = [m for m in body.modules() if isinstance(m, torch.nn.Linear)]
    rows = []
    for length in LENGTHS:
        for tokens in BATCHES:
            ids = torch.randint(5, 40_000, (tokens // length, length))
            inputs = {
                n.in_features: torch.randn(tokens, n.in_features, dtype=dtype) for n in layers
            }

            def linear(inputs: dict[int, torch.Tensor] = inputs) -> None:
                for layer in layers:
                    layer(inputs[layer.in_features])

            def fused(ids: torch.Tensor = ids) -> None:
                use_sdpa(body)
                body(ids)

            def products(ids: torch.Tensor = ids) -> None:
                use_matmul_attention(body)
                body(ids)

            taken = in_turn({"linear": linear, "fused": fused, "products": products}, ROUNDS)
            shares = (taken["linear"] / taken[name] for name in ("fused", "products"))
            rows.append([length, tokens, tokens / taken["linear"], *shares])
    columns = ["tokens a text", "tokens a batch", "linear layers, tokens/s"]
    report("attention_and_batches", [*columns, "share, fused", "share, products"], rows)


if __name__ == "__main__":
    main()
