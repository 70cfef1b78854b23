"""A session with a small hub of our own, run as a script: the hub's client reads its settings once.

It prints a JSON object with the result of each scenario.
"""

import hashlib
import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MAIN, OTHER = "a" * 40, "b" * 40
FOLDERS = {MAIN: Path(sys.argv[1]), OTHER: Path(sys.argv[2])}
REVISIONS = {"main": MAIN, "v2": OTHER, MAIN: MAIN, OTHER: OTHER}


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does: `me/tiny` has two commits, other models are gated or missing."""

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        """Answer a request for the headers."""
        self.do_GET()

    def do_GET(self) -> None:
        """Answer a request."""
        if self.headers.get("authorization") == "Bearer hf_wrong":
            return self.refuse(401, message="Invalid credentials in Authorization header")
        path = self.path.partition("?")[0].removeprefix("/api/models").strip("/").split("/")
        name, rest = "/".join(path[:2]), path[2:]
        if name == "me/gated":
            return self.refuse(403, "GatedRepo")
        if name != "me/tiny":
            return self.refuse(401, "RepoNotFound")
        commit = REVISIONS.get(rest[1] if len(rest) > 1 else "main")
        if commit is None:
            return self.refuse(404, "RevisionNotFound")
        folder = FOLDERS[commit]
        files = [file for file in folder.iterdir() if file.is_file()]
        if rest[0:1] == ["resolve"]:
            return self.answer((folder / rest[2]).read_bytes(), commit)
        if rest[0:1] == ["tree"]:
            entries = [
                {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "c" * 40}
                for f in files
            ]
            return self.answer(json.dumps(entries).encode(), commit)
        siblings = [{"rfilename": file.name} for file in files]
        info = {"id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": []}
        return self.answer(json.dumps(info).encode(), commit)

    def answer(self, content: bytes, commit: str) -> None:
        """Send content."""
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def refuse(self, status: int, code: str = "", message: str = "") -> None:
        """Send an error of the hub."""
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()


def main() -> None:
    """Run the scenarios."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    os.environ |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0"}
    threading.Thread(target=server.serve_forever, daemon=True).start()

    from llm2comp.errors import UserError
    from llm2comp.model.backbone import load_backbone, pinned
    from llm2comp.recipe_parts import Backbone

    results: dict[str, object] = {}

    def attempt(label: str, name: str, revision: str | None = None) -> None:
        try:
            model, _ = load_backbone(name, revision=revision, bidirectional=False)
            results[label] = model.get_input_embeddings().weight[5, 0].item()
        except UserError as error:
            results[label] = str(error)

    results["pinned main"] = pinned(Backbone(name="me/tiny")).revision
    results["pinned v2"] = pinned(Backbone(name="me/tiny", revision="v2")).revision
    attempt("main", "me/tiny")
    attempt("v2", "me/tiny", "v2")
    attempt("commit", "me/tiny", OTHER)
    attempt("no such revision", "me/tiny", "v3")
    attempt("gated", "me/gated")
    attempt("missing", "me/missing")
    os.environ["HF_TOKEN"] = "hf_wrong"
    attempt("wrong token", "me/other")
    server.shutdown()
    server.server_close()
    del os.environ["HF_TOKEN"]
    REVISIONS["main"] = OTHER  # the hub moves on, but this machine cannot know
    attempt("no network, cached", "me/tiny")
    attempt("no network, cached commit", "me/tiny", OTHER)
    attempt("no network, not cached", "me/missing")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
