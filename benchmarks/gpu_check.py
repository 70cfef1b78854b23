"""Checks a GPU: is what is computed on it right, how fast is it, and does it take what was planned.

One table has a row for each check, and each says whether it passed, failed or was not run. Every
part runs in a process of its own, so that one that fails, runs out of memory or hangs leaves the
others as they are. Nothing is downloaded if SmolLM2-135M is in the cache; without it and without a
network, a random model of its shape takes its place.

    python benchmarks/gpu_check.py              # needs a GPU and at most 8 minutes
    python benchmarks/gpu_check.py --stand-in   # the same on a processor, with tiny shapes

The exit status is 1 if a check failed, and 2 if there is no GPU.
"""

import argparse
import sys
from pathlib import Path

import torch

LIMIT = 480
"""Seconds that all checks may take."""


def main() -> int:
    """Check the GPU, print and write the table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stand-in", action="store_true", help="check a processor, as a test")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds, 480 by default")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not (options.part or options.stand_in or torch.cuda.is_available()):
        print(
            "No GPU is visible to PyTorch; run this on a machine with one (llm2comp doctor), or "
            "give --stand-in to try the checks on the processor",
            file=sys.stderr,
        )
        return 2
    from gpucheck import parts  # only now, because it imports everything, which takes long
    from gpucheck.workshop import REAL, TINY, Workshop

    sizes = TINY if options.stand_in else REAL
    if options.part:
        parts.run_part(options.part, Workshop(options.folder, sizes))
        return 0
    return parts.check(Path(__file__), sizes, options.limit, stand_in=options.stand_in)


if __name__ == "__main__":
    sys.exit(main())
