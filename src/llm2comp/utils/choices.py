"""The values that options may take, for the recipe, the API and the command line alike."""

from typing import Literal

Attention = Literal["causal", "bidirectional"]
Backend = Literal["onnx", "openvino"]
"""What a compiled encoder runs on."""
OnBadRow = Literal["fail", "skip"]
Precision = Literal["auto", "bfloat16", "float32"]
"""``auto`` is bfloat16 where the processor has it and, in encoding, embeddings stay the same."""
Prompt = Literal["query", "document"]
Suite = Literal["offline", "paper"]
TableFormat = Literal["terminal", "markdown", "csv", "latex"]
