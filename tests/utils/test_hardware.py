"""Freed memory is used again, where the C library is glibc."""

import platform
import subprocess
import sys

import pytest

from llm2comp.utils import hardware

FAULTS = """
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


def faults(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")
def test_blocks_that_were_freed_are_not_cleared_page_by_page_again() -> None:
    assert faults("keep") < faults("as it is") / 10


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(hardware.ctypes, "CDLL", lambda _: pytest.fail("was called"))
    hardware.retain_freed_memory()
