"""What the readers share: the type of a row, and lines and elements of files."""

import io
import json
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, str]
Reader = Callable[[Path], Iterator[Row]]
"""Takes the folder of the files and yields rows of column name to text."""


def lines(path: Path, encoding: str = "utf-8") -> Iterator[str]:
    """Yield the lines of a file that are not blank."""
    with path.open(encoding=encoding, newline="\n") as file:  # do not split at U+2028
        for line in file:
            if line.strip():
                yield line.rstrip("\r\n")


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file with one JSON object per line."""
    return map(json.loads, lines(path))


def elements(file: io.BufferedIOBase, tag: str) -> Iterator[ET.Element]:
    """Yield the elements of one tag in an XML stream, and free each one afterwards."""
    events = ET.iterparse(file, events=("start", "end"))
    _, root = next(events)
    for event, element in events:
        if event == "end" and element.tag.rpartition("}")[2] == tag:
            yield element
            root.clear()
