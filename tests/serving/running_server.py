"""A real server on a free port, in a thread of this process."""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import requests
from sentence_transformers import SentenceTransformer

from llm2comp.serving.loading import load_all, named_indexes
from llm2comp.serving.searching import ServedIndex
from llm2comp.serving.server import Server, bind
from llm2comp.serving.service import Service
from llm2comp.serving.settings import Limits


class Running:
    """A server that runs in a thread.

    Args:
        encoders: by name.
        limits: of what clients may ask for.
        tokens: that clients must show.
        indexes: that are searched.
    """

    def __init__(
        self,
        encoders: dict[str, SentenceTransformer],
        limits: Limits,
        tokens: tuple[bytes, ...] = (),
        indexes: Sequence[ServedIndex] = (),
    ) -> None:
        self.service = Service(encoders, limits, indexes=indexes)
        self.server = Server(self.service, tokens)
        self.listening = bind("127.0.0.1", 0)
        self.port: int = self.listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.server.run, args=([self.listening],))
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def embed(self, **fields: Any) -> requests.Response:
        """Post to `/v1/embeddings`."""
        return self.post("/v1/embeddings", json={"model": "tiny", **fields})

    def search(self, query: str | list[str], **fields: Any) -> requests.Response:
        """Post to `/search`."""
        return self.post("/search", json={"query": query, **fields})

    def get(self, path: str, **options: Any) -> requests.Response:
        """Get a path."""
        return requests.get(f"{self.url}{path}", timeout=30, **options)

    def post(self, path: str, **options: Any) -> requests.Response:
        """Post to a path."""
        return requests.post(f"{self.url}{path}", timeout=30, **options)

    def stop(self) -> None:
        """Stop as SIGTERM does."""
        self.server.handle_exit(15, None)
        self.thread.join(30)
        assert not self.thread.is_alive()
        self.service.close()


def assert_problem(response: requests.Response, status: int, says: str) -> None:
    """Check that a response is an error in OpenAI's shape, with a remedy."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert error.keys() == {"message", "remedy", "type", "param", "code"}
    assert error["remedy"]
    assert error["message"].endswith(f"; {error['remedy']}")
    assert says in error["message"], error["message"]


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Return when a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def serve_indexes(folder: Path | None, *indexes: Path, **limits: Any) -> Running:
    models = {} if folder is None else {"tiny": str(folder)}
    named = named_indexes([str(one) for one in indexes])
    encoders, opened = load_all(models, named, "float32", None)
    return Running(encoders, Limits(**limits), indexes=opened)
