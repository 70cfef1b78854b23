"""The table of all checks: printed, and written as Markdown and as JSON."""

import json
import subprocess
from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpucheck.rows import Row
from gpucheck.workshop import SEED
from llm2comp.utils.files import atomic_file
from llm2comp.utils.tables import Cells, markdown, show_cells
from llm2comp.version import __version__

HEADING = ["part", "check", "result", "measured, or why not", "limit", "seconds"]


def about(folder: Path, backbone: str, seconds: float) -> dict[str, Any]:
    """Return what the table depends on.

    Args:
        folder: where the parts have written which device they saw.
        backbone: what the small backbone was.
        seconds: that all took.
    """
    file = folder / "device.json"
    device = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return device | {
        "backbone": backbone,
        "seed": SEED,
        "llm2comp": f"{__version__}, {_commit()}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "seconds": round(seconds),
    }


def _commit() -> str:
    """Return the commit of the checkout, and whether it was changed."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "commit unknown"
    return f"commit {done.stdout.strip()}"


def cells(rows: list[Row]) -> Cells:
    """Return the table as text."""
    return [
        HEADING,
        *(
            [row.part, row.check, row.result, row.measured, row.limit, f"{row.seconds:.1f}"]
            for row in rows
        ),
    ]


def summary(rows: list[Row]) -> str:
    """Return how many checks have which result, in words."""
    counts = Counter(row.result for row in rows)
    return ", ".join(f"{count} {result}" for result, count in sorted(counts.items()))


def report(rows: list[Row], known: dict[str, Any], target: Path) -> None:
    """Print the table, and write it.

    Args:
        rows: of all parts.
        known: what they depend on.
        target: path of the two files, without the ends of their names.
    """
    show_cells(cells(rows))
    lines = [f"{name}: {value}" for name, value in known.items()]
    print("\n".join([*lines, summary(rows)]))
    title = f"# GPU check: {known.get('card', 'unknown')}\n\n"
    listed = "".join(f"- {line}\n" for line in [*lines, f"result: {summary(rows)}"])
    with atomic_file(target.with_suffix(".md")) as file:
        file.write_text(f"{title}{listed}\n{markdown(cells(rows))}", encoding="utf-8")
    found = {"about": known, "rows": [asdict(row) for row in rows]}
    with atomic_file(target.with_suffix(".json")) as file:
        text = json.dumps(found, indent=1, ensure_ascii=False)
        file.write_text(f"{text}\n", encoding="utf-8")
    print(f"written to {target.with_suffix('.md')} and {target.with_suffix('.json')}")
