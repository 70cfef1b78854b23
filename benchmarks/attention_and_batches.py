"""The body of SmolLM2 by attention and tokens a batch: share of its linear layers alone.

For each length of text and size of batch, in turn: the linear layers of all blocks and
nothing else (the roofline), the body with PyTorch's fused attention, and the body with
llm2comp.attention. In bfloat16 where the processor has it.
"""

import json
from pathlib import Path

import torch
from harness import seconds
from rich.console import Console
from rich.table import Table

from llm2comp import encoder, release
from llm2comp.attention import use_fused, use_products
from llm2comp.cache import whole_file
from llm2comp.hardware import compute_dtype

MODEL = "smollm2-135m-llm2comp"
LENGTHS = (32, 64, 128, 256)
BATCHES = (1024, 2048, 4096, 8192)
ROUNDS = 3
RESULT = Path(__file__).parent / "results" / "attention_and_batches.json"


@torch.inference_mode()
def main() -> None:
    """Measure, print a table, write the numbers."""
    dtype = compute_dtype("auto")
    body = encoder.encoder_body(release.load_model(MODEL, dtype))
    layers = [m for m in body.modules() if isinstance(m, torch.nn.Linear)]
    table = Table("tokens a text", "tokens a batch", "linear layers, tokens/s", "fused", "products")
    found = []
    for length in LENGTHS:
        for tokens in BATCHES:
            ids = torch.randint(5, 40_000, (tokens // length, length))
            inputs = {
                n.in_features: torch.randn(tokens, n.in_features, dtype=dtype) for n in layers
            }

            def linear(inputs: dict[int, torch.Tensor] = inputs) -> None:
                for layer in layers:
                    layer(inputs[layer.in_features])

            best = dict.fromkeys(("linear", "fused", "products"), float("inf"))
            for _ in range(ROUNDS):
                best["linear"] = min(best["linear"], seconds(linear))
                for name, use in (("fused", use_fused), ("products", use_products)):
                    use(body)
                    best[name] = min(best[name], seconds(lambda ids=ids: body(ids)))
            shares = [best["linear"] / best[name] for name in ("fused", "products")]
            rate = tokens / best["linear"]
            table.add_row(f"{length}", f"{tokens:,}", f"{rate:,.0f}", *(f"{s:.2f}" for s in shares))
            found.append({"length": length, "tokens": tokens, "seconds": best})
    Console().print(table)
    with whole_file(RESULT) as file:
        file.write_text(json.dumps({"dtype": str(dtype), "rows": found}) + "\n")


if __name__ == "__main__":
    main()
