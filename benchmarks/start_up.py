"""From command to first embedding: with an empty cache, at the first use after, and from then on.

Each is `llm2comp encode` of a file of one line in a process of its own. Cold, it installs the
backbone's weights and merges the released encoder; both it and the next run check bfloat16 against
float32 once. Beside them what cannot be saved: a Python that imports torch, and one that imports
sentence-transformers.

    python benchmarks/start_up.py
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import in_turn, report, seconds

MODEL = "smollm2-135m-llm2comp"
ROUNDS = 5


def main() -> None:
    """Measure, print a table, write the numbers."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "text.txt"
        file.write_text("A compiler turns source code into instructions.\n", encoding="utf-8")
        command = [sys.executable, "-m", "llm2comp"]
        encode = [*command, "encode", MODEL, str(file), "--out", str(Path(scratch) / "vector.npy")]
        environment = os.environ | {"LLM2COMP_CACHE": str(Path(scratch) / "cache")}

        def run(*arguments: str) -> None:
            subprocess.run(arguments, env=environment, check=True, capture_output=True)

        cold = seconds(lambda: run(*encode))
        warm = in_turn(
            {
                "llm2comp encode": lambda: run(*encode),
                "llm2comp --help": lambda: run(*command, "--help"),
                "import sentence_transformers": lambda: run(
                    sys.executable, "-c", "import sentence_transformers"
                ),
                "import torch": lambda: run(sys.executable, "-c", "import torch"),
            },
            ROUNDS,
        )
    rows = [["llm2comp encode, empty cache", cold, cold - warm["import torch"]]]
    rows += [[name, took, took - warm["import torch"]] for name, took in warm.items()]
    report("start_up", ["", "seconds", "over importing torch"], rows)


if __name__ == "__main__":
    main()
