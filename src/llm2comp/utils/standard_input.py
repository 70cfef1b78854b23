"""Standard input as a file that can be read more than once, which a pipe cannot."""

import io
import os
import shutil
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import IO, BinaryIO, TextIO

STANDARD_INPUT = Path("-")
"""The name of standard input where a file of texts is asked for."""


def open_bytes(path: Path) -> io.BufferedReader:
    """Open a file, or standard input, for reading from its start."""
    if path != STANDARD_INPUT:
        return path.open("rb")
    return io.BufferedReader(_Copy(_copied(sys.stdin).fileno()))


@lru_cache(maxsize=1)
def _copied(stream: TextIO) -> IO[bytes]:
    """Copy a stream to a file without a name, which is gone when the process ends."""
    copy = tempfile.TemporaryFile()  # noqa: SIM115 (it is read until the process ends)
    source: BinaryIO = stream.buffer
    shutil.copyfileobj(source, copy)
    copy.flush()
    return copy


class _Copy(io.RawIOBase):
    """Reads an open file from its start, wherever other readers of it are."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.place = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        content = os.pread(self.number, len(buffer), self.place)
        buffer[: len(content)] = content
        self.place += len(content)
        return len(content)
