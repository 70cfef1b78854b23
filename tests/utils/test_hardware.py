"""With glibc, freed memory is kept and used again."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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


@pytest.mark.parametrize(
    ("flags", "mkl", "slow"),
    [
        ({"AuthenticAMD", "avx2"}, True, True),
        ({"GenuineIntel", "avx2"}, True, False),
        ({"AuthenticAMD", "avx2"}, False, False),
        (set(), True, False),  # another system than Linux
    ],
)
def test_mkl_is_slow_on_processors_of_amd(
    flags: set[str], mkl: bool, slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "_processor_flags", lambda: frozenset(flags))
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    assert hardware.mkl_is_slow() is slow


@pytest.mark.parametrize("native", [False, True])
def test_a_gpu_decides_and_not_the_processor(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that has float16 alone gives float32; float16 would overflow."""
    monkeypatch.setattr(hardware, "_processor_flags", lambda: frozenset({"avx512_bf16"}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or native
    )
    assert hardware.compute_dtype("auto") == (torch.bfloat16 if native else torch.float32)


def test_a_system_without_a_list_of_flags_computes_in_float32(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As macOS, whose GPU is another device, and Windows."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(hardware, "Path", lambda _: tmp_path / "no such file")
    assert hardware.compute_dtype("auto") == torch.float32
