"""The values of options that the recipe, the Python API and the command line share."""

from typing import Literal

Attention = Literal["causal", "bidirectional"]
"""Attention of the encoder."""
AttnImplementation = Literal["eager", "flash_attention_2", "flex_attention", "sdpa"]
"""How attention is computed, by the name that transformers has for it."""
Backend = Literal["onnx", "openvino"]
"""The runtime of a compiled encoder."""
Export = Literal["onnx", "openvino", "last-token", "multi-vector"]
"""What an encoder is exported to: a runtime, the form that servers with pooling of their own read,
or a `MultiVectorEncoder` of sentence-transformers."""
EmbeddingPrecision = Literal["float32", "float16", "int8", "uint8", "binary"]
"""In what the numbers of an embedding are stored. `binary` is one bit for each number."""
Engine = Literal["local", "ray"]
"""What encodes many files: this machine alone, or a cluster of Ray."""
IndexPrecision = Literal["float32", "float16", "int8", "binary"]
"""In what an index of one vector per text compares vectors with a query first; floats then rank the
best of them. Or in what an index of k vectors per text stores these. The first has no float16, and
the second no float32."""
OnBadRow = Literal["fail", "skip"]
"""What a bad row of data does: stop the run, or be left out."""
Precision = Literal["auto", "bfloat16", "float32"]
"""`auto` is bfloat16 if the processor computes it natively, and float32 otherwise. When a model is
loaded to encode, `auto` also requires that bfloat16 does not change the embeddings."""
SavedPrecision = Literal["float32", "bfloat16"]
"""Precision of the weights in an encoder folder."""
Prompt = Literal["query", "document"]
"""Which prompt of the encoder is put before a text."""
SearchBy = Literal["vector", "text", "hybrid"]
"""How an index is searched: by cosine, by BM25 over words, or by both."""
Suite = Literal["offline", "paper"]
"""A set of evaluation tasks. `offline` needs no hub; `paper` is the paper's 14 tasks."""
TableFormat = Literal["terminal", "markdown", "csv", "latex"]
"""How a table is printed."""
VectorCount = Literal["one", "k"]
"""Vectors of a text: its embedding, or its k memory vectors, which MaxSim compares."""
