"""With glibc, freed memory is kept and used again."""

import platform
import subprocess
import sys

import pytest

from llm2comp.utils import hardware

COUNT_FAULTS = """
import resource, sys
import torch
from llm2comp.utils.hardware import retain_freed_memory
if sys.argv[1] == "keep":
    retain_freed_memory()
for _ in range(20):
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    """Return how many pages a new process is given while it allocates and frees 1.3 GB."""
    done = subprocess.run(
        [sys.executable, "-c", COUNT_FAULTS, how], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")
def test_freed_blocks_are_not_cleared_again() -> None:
    assert page_faults("keep") < page_faults("default") / 10


def test_with_another_c_library_nothing_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(hardware.ctypes, "CDLL", lambda _: pytest.fail("was called"))
    hardware.retain_freed_memory()
