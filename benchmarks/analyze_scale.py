"""How long and how much memory does `llm2comp analyze` take for many wide vectors?

Makes a file of random vectors with a decaying spectrum, measures it in a
process of its own, and prints seconds and peak memory.

    python benchmarks/analyze_scale.py [--rows 100000] [--dimension 4096]
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

CHUNK = 4096
RESULTS = Path(__file__).parent / "results"


def make(file: Path, rows: int, dimension: int) -> None:
    """Write rows whose dimensions fall in size, and share an offset."""
    generator = np.random.default_rng(0)
    scales = (1 / np.sqrt(np.arange(1, dimension + 1))).astype(np.float32)
    with file.open("wb") as stream:
        header = {"shape": (rows, dimension), "fortran_order": False, "descr": "<f4"}
        np.lib.format.write_array_header_1_0(stream, header)
        for start in range(0, rows, CHUNK):
            shape = (min(CHUNK, rows - start), dimension)
            chunk = generator.standard_normal(shape, dtype=np.float32) * scales + 0.02
            stream.write(chunk.tobytes())


def measure(file: Path) -> dict[str, float]:
    """Analyse the file in this process."""
    from llm2comp.analysis.measure import analyze_embeddings

    found = analyze_embeddings(file, file.name)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {
        "rows": found.n,
        "dimension": found.dimension,
        "seconds": round(found.seconds, 1),
        "peak_gb": round(peak, 2),
        "rankme": round(found.spectrum.rankme, 1),
    }


def main() -> None:
    """Run, print and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=4096)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.file:
        print(json.dumps(measure(options.file)))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vectors.npy"
        make(file, options.rows, options.dimension)
        command = [sys.executable, __file__, "--file", str(file)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    print(output.strip())
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "analyze_scale.json").write_text(output)


if __name__ == "__main__":
    main()
