"""From command to first embedding: `llm2comp encode` on a file of one line, cold and warm.

Each is a process of its own, run in turn, three times after one that is not counted. Cold is an
empty cache but for the downloads: weights are converted from GGUF, the release's adapters merged
into them, and bfloat16 is checked. Warm is every later call. Stock sentence-transformers loading
and encoding with the same folder, and its import alone, show what of that is not ours.

    python benchmarks/start_up.py
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import in_turn, report

from llm2comp.model import released
from llm2comp.utils.files import cache_dir

MODEL = "smollm2-135m-llm2comp"
ROUNDS = 3
STOCK = """
import sys
from sentence_transformers import SentenceTransformer
SentenceTransformer(sys.argv[1], device="cpu").encode(["one line"])
"""


def run(*arguments: str, cache: Path | None = None) -> None:
    """Run Python with these arguments, and with this cache."""
    environment = os.environ | ({"LLM2COMP_CACHE": str(cache)} if cache else {})
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")


def main() -> None:
    """Measure, print a table, write the numbers."""
    folder = released.fetch(MODEL)
    ours = ("-m", "llm2comp")
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "one.txt"
        file.write_text("one line\n", encoding="utf-8")
        encode = (*ours, "encode", MODEL, str(file), "--out", str(file.with_suffix(".npy")))

        def cold() -> None:
            with tempfile.TemporaryDirectory(dir=scratch) as empty:
                (Path(empty) / "data").symlink_to((cache_dir() / "data").resolve())
                run(*encode, cache=Path(empty))

        taken = in_turn(
            {
                "llm2comp --help": lambda: run(*ours, "--help"),
                "import torch": lambda: run("-c", "import torch"),
                "import sentence_transformers": lambda: run("-c", "import sentence_transformers"),
                "stock, load and encode": lambda: run("-c", STOCK, str(folder)),
                "llm2comp encode, warm": lambda: run(*encode),
                "llm2comp encode, cold": cold,
            },
            ROUNDS,
        )
    report("start_up", ["command", "seconds"], [[name, spent] for name, spent in taken.items()])


if __name__ == "__main__":
    main()
