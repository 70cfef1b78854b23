"""A hub of our own: the part of its HTTP API with which its client uploads a model."""

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from huggingface_hub import ModelCard

TOKEN = "hf_good"
Files = dict[str, bytes]


@dataclass
class Repository:
    """A model on the hub.

    Attributes:
        private: whether others see it.
        branches: files by branch.
        commits: messages by branch, in order.
    """

    private: bool
    branches: dict[str, Files] = field(default_factory=lambda: {"main": {".gitattributes": b""}})
    commits: list[tuple[str, str]] = field(default_factory=list)


class Hub:
    """A running stand-in.

    Attributes:
        repositories: by name.
        objects: large files that were uploaded, by their sha256.
        requests: method and path of each request.
        refused: the status that requests get whose path contains a text.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.refused: dict[str, tuple[int, str]] = {}
        self.server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self})
        )
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop. The port then refuses connections."""
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def do_PUT(self) -> None:
        self._handle()

    def _handle(self) -> None:
        path = urlsplit(self.path).path
        self.hub.requests.append(f"{self.command} {path}")
        self.body = self._read()
        for part, (status, message) in self.hub.refused.items():
            if part in path:
                return self._answer({"error": message}, status, {"X-Error-Message": message})
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if parts[0] != "lfs" and self.headers.get("authorization") != f"Bearer {TOKEN}":
            wrong = "Invalid credentials in Authorization header"
            return self._answer({"error": wrong}, 401, {"X-Error-Message": wrong})
        if parts[0] == "lfs":
            return self._large_file(parts[1])
        if parts[:3] == ["api", "repos", "create"]:
            return self._create()
        if parts[:2] == ["api", "validate-yaml"]:
            return self._validate()
        if parts[0] == "api":
            return self._model("/".join(parts[2:4]), parts[4:])
        assert parts[2:] == ["info", "lfs", "objects", "batch"], path
        return self._large_files()

    def _create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        answer = {"url": f"{self.hub.url}/{name}"}
        if name in self.hub.repositories:
            return self._answer(answer | {"error": "You already created this model repo"}, 409)
        private = asked.get("private") or asked.get("visibility") == "private"
        self.hub.repositories[name] = Repository(private=bool(private))
        return self._answer(answer)

    def _validate(self) -> None:
        try:
            ModelCard(json.loads(self.body)["content"])
        except ValueError as error:
            return self._answer({"errors": [{"message": str(error)}]}, 400)
        return self._answer({"errors": [], "warnings": []})

    def _model(self, name: str, rest: list[str]) -> None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            return self._answer({}, 404, {"X-Error-Code": "RepoNotFound"})
        branch = "/".join(rest[1:]) or "main"
        if rest[:1] == ["branch"]:
            if branch in repository.branches:
                return self._answer({"error": "Reference already exists"}, 409)
            repository.branches[branch] = dict(repository.branches["main"])
            return self._answer({})
        if branch not in repository.branches:
            return self._answer({}, 404, {"X-Error-Code": "RevisionNotFound"})
        files = repository.branches[branch]
        if rest[:1] == ["preupload"]:
            modes = {True: "lfs", False: "regular"}
            asked = json.loads(self.body)["files"]
            answer = [
                {
                    "path": file["path"],
                    "uploadMode": modes[file["path"].endswith(".safetensors")],
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in asked
            ]
            return self._answer({"files": answer})
        if rest[:1] == ["commit"]:
            return self._commit(name, repository, branch)
        if rest[:1] == ["tree"]:
            entries = [
                {"type": "file", "path": path, "size": len(content), "oid": "c" * 40}
                for path, content in files.items()
            ]
            return self._answer(entries)
        siblings = [{"rfilename": path} for path in files]
        about = {"id": name, "sha": "a" * 40, "private": repository.private, "tags": []}
        return self._answer(about | {"siblings": siblings})

    def _commit(self, name: str, repository: Repository, branch: str) -> None:
        files = dict(repository.branches[branch])
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "header":
                repository.commits.append((branch, value["summary"]))
            elif operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            else:
                assert operation["key"] == "deletedFile"
                del files[value["path"]]
        repository.branches[branch] = files
        oid = f"{len(repository.commits):040x}"
        url = f"{self.hub.url}/{name}/commit/{oid}"
        self._answer({"success": True, "commitOid": oid, "commitUrl": url})

    def _large_files(self) -> None:
        def actions(oid: str) -> dict[str, Any]:
            if oid in self.hub.objects:
                return {}
            return {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{oid}"}}}

        asked = json.loads(self.body)["objects"]
        self._answer({"objects": [one | actions(one["oid"]) for one in asked]})

    def _large_file(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.objects[oid] = self.body
        self._answer({})

    def _read(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(
        self, content: Any, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in ((headers or {}) | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
