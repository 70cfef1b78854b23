"""Checks of this machine: versions, processor, memory, disk, network, and a remedy for each."""

import importlib.metadata
import os
import platform
import shutil
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Literal

import psutil
import torch
from huggingface_hub import constants as hub

from llm2comp.errors import counted
from llm2comp.utils.files import cache_dir
from llm2comp.utils.hardware import native_bfloat16
from llm2comp.version import __version__

PACKAGES = (
    "torch",
    "transformers",
    "sentence-transformers",
    "peft",
    "tokenizers",
    "datasets",
    "mteb",
)
HUB_SECONDS = 3.0
"""Time that the hub has to answer."""
MEMORY_GB, DISK_GB = 6, 3
"""Free memory and disk space that `llm2comp demo` needs."""


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: what was checked.
        status: `ok`, `note` for something slow or missing that is optional, or `wrong`.
        value: what was found.
        remedy: what to do; empty if the status is `ok`.
    """

    name: str
    status: Literal["ok", "note", "wrong"]
    value: str
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f"\n{'':30}-> {self.remedy}" if self.remedy else ""
        return f"{self.status:6} {self.name:22} {self.value}{remedy}"


def examine() -> list[Finding]:
    """Return all findings. This takes at most about three seconds, without the imports."""
    return [*_versions(), _cores(), _bf16(), _gpu(), _memory(), *_cache(), _fetchers(), _hub()]


def _versions() -> list[Finding]:
    findings = [
        Finding("llm2comp", "ok", __version__),
        Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}"),
    ]
    for package in PACKAGES:
        try:
            findings.append(Finding(package, "ok", importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            remedy = f"pip install {package}"
            findings.append(Finding(package, "wrong", "not installed", remedy))
    return findings


def _cores() -> Finding:
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    threads = torch.get_num_threads()
    value = f"{cores} physical, torch uses {counted(threads, 'thread')}"
    if threads > cores:
        remedy = f"OMP_NUM_THREADS={cores} is usually faster than more threads than cores"
        return Finding("cores", "note", value, remedy)
    return Finding("cores", "ok", value)


def _bf16() -> Finding:
    if native_bfloat16():
        return Finding("bfloat16", "ok", "native; training uses it")
    remedy = "training uses float32 (backbone.dtype: auto), which takes about twice as long"
    return Finding("bfloat16", "note", "not native on this processor", remedy)


def _gpu() -> Finding:
    if torch.cuda.is_available():
        return Finding("gpu", "ok", torch.cuda.get_device_name())
    return Finding("gpu", "ok", "none; SmolLM2 trains on the CPU, 7B backbones need a GPU")


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    value = f"{memory.available / 1e9:.1f} GB free of {memory.total / 1e9:.1f} GB"
    if memory.available < MEMORY_GB * 1e9:
        remedy = f"the demo needs {MEMORY_GB} GB: close programs, or halve mini_batch_size"
        return Finding("memory", "note", value, remedy)
    return Finding("memory", "ok", value)


def _cache() -> list[Finding]:
    folder = cache_dir()
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    cache = Finding("cache", "ok", f"{folder} ({size / 1e6:.0f} MB)")
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        remedy = "set LLM2COMP_CACHE to a folder that you can write to"
        cache = Finding("cache", "wrong", f"{folder} cannot be written", remedy)
    free = shutil.disk_usage(existing).free
    if free < DISK_GB * 1e9:
        remedy = f"free {DISK_GB} GB, or set LLM2COMP_CACHE to a folder on another disk"
        return [cache, Finding("disk", "wrong", f"{free / 1e9:.1f} GB free", remedy)]
    return [cache, Finding("disk", "ok", f"{free / 1e9:.0f} GB free")]


def _fetchers() -> Finding:
    if shutil.which("npm"):
        return Finding("npm", "ok", "found")
    remedy = "install Node.js to download nlp-corpus-sentences; nothing else needs it"
    return Finding("npm", "note", "not found", remedy)


def _hub() -> Finding:
    if hub.HF_HUB_OFFLINE:
        remedy = "unset HF_HUB_OFFLINE to load models and data by hub id"
        return Finding("hub", "note", "switched off by HF_HUB_OFFLINE", remedy)
    if _answers(hub.ENDPOINT):
        return Finding("hub", "ok", "reachable")
    remedy = "names from `llm2comp data list` and local folders work; hub ids need a network"
    return Finding("hub", "note", f"no answer within {HUB_SECONDS:.0f} s", remedy)


def _answers(address: str) -> bool:
    """Whether anything answers. It asks in a thread, because a DNS lookup ignores the timeout."""
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(address, timeout=HUB_SECONDS).close()
        except urllib.error.HTTPError:
            pass  # an error status is an answer too
        except OSError:
            return
        answered.set()

    threading.Thread(target=ask, daemon=True).start()
    return answered.wait(HUB_SECONDS)
