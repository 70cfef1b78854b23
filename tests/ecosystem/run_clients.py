"""Load encoder folders with the clients that people use: ``make test-ecosystem``.

Each client gets an environment of its own in the cache folder of llm2comp, once. It loads folders
that this process has written, and its embeddings are compared with those of this process. The
result is docs/reference/clients.md. The exit status is 1 if a client computes other embeddings
without an error where it should compute the same or refuse. Names of environments as arguments
select some of them; the page then has the last outcome of the others.
"""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from folders import PROMPT, QUERY, Folder, write_folders

from llm2comp.utils.files import cache_dir

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "reference" / "clients.md"
CONSTRAINTS = HERE.parents[1] / "constraints.txt"
EQUAL = 1e-4
"""Largest cosine distance that counts as rounding: clients have other versions of everything."""


@dataclass(frozen=True)
class Environment:
    """One client in one set of versions.

    Attributes:
        name: of the environment, and of the row.
        requirements: for pip.
        client: a function of client.py.
        wrong: whether the client is known to pool by itself, so that it is not a failure here.
    """

    name: str
    requirements: tuple[str, ...]
    client: str = "sentence_transformers"
    wrong: bool = False


def _stock(version: str, transformers: str) -> Environment:
    name = f"sentence-transformers {version}, transformers {transformers}"
    pins = (f"sentence-transformers=={version}", f"transformers=={transformers}")
    return Environment(name, pins)


TXTAI = ("txtai==9.14.0", "sentence-transformers")
ENVIRONMENTS = (
    _stock("3.4.1", "4.48.3"),
    _stock("4.1.0", "4.51.3"),
    _stock("5.0.0", "4.53.3"),
    _stock("5.2.0", "4.57.6"),
    _stock("5.7.0", "4.57.6"),
    _stock("6.0.0", "5.0.0"),
    _stock("6.0.0", "5.1.0"),
    _stock("6.2.0", "5.2.0"),
    _stock("6.2.0", "5.24.0"),
    Environment("LangChain", ("langchain-huggingface[full]==1.2.3",), "langchain"),
    Environment("infinity", ("infinity-emb[torch]==0.0.78",), "infinity"),
    Environment("txtai, as the guide says", TXTAI, "txtai"),
    Environment("txtai by default", TXTAI, "txtai_default", wrong=True),
    Environment("LlamaIndex", ("llama-index-embeddings-huggingface==0.8.0",), "llama_index"),
    Environment("Haystack", ("haystack-ai==3.4.1", "sentence-transformers-haystack"), "haystack"),
    Environment("Chroma", ("chromadb==1.5.9", "sentence-transformers"), "chroma"),
)


@dataclass
class Row:
    """What a client did.

    Attributes:
        environment: of the client.
        versions: of the packages that compute.
        cells: by folder: `equal`, `refused` or the smallest cosine.
        refusals: what the client said, by folder.
        prompts: whether the query had its prompt by default, and when the client was told.
    """

    environment: Environment
    versions: dict[str, str] = field(default_factory=dict)
    cells: dict[str, str] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)
    prompts: tuple[str, str] = ("", "")


def python_of(environment: Environment) -> Path:
    """Make the environment if it is not there, and return its Python."""
    known = "-".join(sorted(environment.requirements)).replace("/", "_")
    folder = cache_dir() / "clients" / known
    python = folder / "bin" / "python"
    if not (folder / ".complete").exists():
        sys.stderr.write(f"installing {known} ...\n")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        torch = next(
            line for line in CONSTRAINTS.read_text().splitlines() if line.startswith("torch==")
        )
        subprocess.run([*pip, torch, *environment.requirements], check=True)
        (folder / ".complete").touch()
    return python


def ask(environment: Environment, folder: Folder) -> dict[str, Any]:
    """Return what client.py prints."""
    task = {"folder": str(folder.path), "texts": folder.texts, "query": QUERY, "prompt": PROMPT}
    done = subprocess.run(
        [str(python_of(environment)), "-W", "ignore", str(HERE / "client.py"), environment.client],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        return {"versions": {}, "refused": done.stderr.strip().rpartition("\n")[2]}
    answer: dict[str, Any] = json.loads(done.stdout.strip().rpartition("\n")[2])
    return answer


def cosine(one: Any, other: Any) -> float:
    """Return the smallest cosine between the rows of two matrices, of which one has unit rows."""
    first, second = (np.atleast_2d(np.asarray(rows, float)) for rows in (one, other))
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second /= np.linalg.norm(second, axis=1, keepdims=True)
    return float((first * second).sum(1).min())


def row_of(environment: Environment, folders: list[Folder]) -> Row:
    """Let a client load all folders."""
    row = Row(environment)
    for folder in folders:
        answer = ask(environment, folder)
        row.versions |= answer["versions"]
        if "refused" in answer:
            row.cells[folder.name] = "refused"
            row.refusals[folder.name] = answer["refused"]
            continue
        found = cosine(answer["texts"], folder.embeddings)
        row.cells[folder.name] = "equal" if found >= 1 - EQUAL else f"**{found:.3f}**"
        if folder.causal and folder.has_prompt:
            plain, prompted = folder.query
            row.prompts = tuple(  # type: ignore[assignment]
                "yes"
                if cosine(answer[way], prompted) >= 1 - EQUAL
                else "no"
                if cosine(answer[way], plain) >= 1 - EQUAL
                else "?"
                for way in ("default", "told")
            )
    return row


def failures(row: Row, folders: list[Folder]) -> list[str]:
    """Return what a client may not do: compute other embeddings, or refuse a causal folder."""
    if row.environment.wrong:
        return []
    return [
        f"{row.environment.name}, {folder.name}: {row.cells[folder.name]} "
        f"{row.refusals.get(folder.name, '')}"
        for folder in folders
        if row.cells[folder.name] not in (("equal",) if folder.causal else ("equal", "refused"))
    ]


def page(rows: list[Row], folders: list[Folder]) -> str:
    """Return the page of the documentation."""
    names = [folder.name for folder in folders]
    table = [
        "| client | sentence-transformers | transformers | "
        + " | ".join(names)
        + " | query prompt "
        "by default | when told |",
        "|---" * (5 + len(names)) + "|",
    ]
    for row in rows:
        versions = [row.versions.get(p, "") for p in ("sentence-transformers", "transformers")]
        name = row.environment.name
        client = (
            "sentence-transformers" if row.environment.client == "sentence_transformers" else name
        )
        cells = [client, *versions, *(row.cells[n] for n in names), *row.prompts]
        table.append(f"| {' | '.join(cells)} |")
    said = {
        text.replace(str(folder.path), "FOLDER").splitlines()[0]: name
        for row in rows
        for folder in folders
        for name, text in row.refusals.items()
        if name == folder.name
    }
    refusals = [f"- `{text.replace('`', chr(39))}`" for text in sorted(said)]
    return "\n".join(
        [
            (HERE / "page.md").read_text(encoding="utf-8").rstrip(),
            "",
            *table,
            "",
            "These are the messages of the clients that refuse a folder:",
            "",
            *refusals,
            "",
            "`make test-ecosystem` makes an environment for each row, and writes this page.",
            "",
        ]
    )


def outcome_file(name: str) -> Path:
    """Return where the last outcome of an environment is kept."""
    return cache_dir() / "clients" / "rows" / f"{name}.json"


def last_rows() -> list[Row]:
    """Return the last outcome of each environment, in the order of the table."""
    known = [e for e in ENVIRONMENTS if outcome_file(e.name).exists()]
    return [Row(e, **json.loads(outcome_file(e.name).read_text())) for e in known]


def main(selected: list[str]) -> int:
    folders = write_folders(cache_dir() / "clients" / "folders")
    failed = []
    for environment in ENVIRONMENTS:
        if selected and environment.name not in selected:
            continue
        row = row_of(environment, folders)
        sys.stderr.write(f"{environment.name}: {row.cells} {row.prompts} {row.refusals}\n")
        failed += failures(row, folders)
        outcome = {key: value for key, value in asdict(row).items() if key != "environment"}
        outcome_file(environment.name).parent.mkdir(exist_ok=True)
        outcome_file(environment.name).write_text(json.dumps(outcome))
    PAGE.write_text(page(last_rows(), folders), encoding="utf-8")
    sys.stderr.writelines(f"FAILED {line}\n" for line in failed)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
