"""Schemathesis sends what the OpenAPI document allows, and what it does not allow."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from running_server import Running
from schemathesis.specs.openapi.checks import positive_data_acceptance

from llm2comp.serving.loading import load_all
from llm2comp.serving.settings import Limits

NAMED = ("/v1/embeddings", "/v2/embed", "/memory-tokens")
"""Routes whose body names a model."""


@pytest.fixture(scope="module")
def server(folder: Path, notes: Path) -> Iterator[Running]:
    """A server that searches an index."""
    encoders, indexes = load_all({"tiny": str(folder)}, {"notes": str(notes)}, "float32", None)
    running = Running(encoders, Limits(texts=64, characters=5000), indexes=indexes)
    yield running
    running.stop()


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
def test_every_answer_is_as_documented(server: Running, mode: schemathesis.GenerationMode) -> None:
    document = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [found.ok() for found in document.get_all_operations()]
    paths = {operation.path for operation in operations}
    assert paths >= {"/v1/models", "/metrics", "/search", "/indexes", *NAMED}
    for operation in operations:
        if mode.is_negative and not operation.body:
            continue  # there is nothing that could be wrong

        @given(operation.as_strategy(generation_mode=mode))
        @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
        def check(case: schemathesis.Case) -> None:
            body = case.body
            if case.path.startswith("/v1/vector_stores"):
                case.path_parameters["name"] = "notes"
            if (
                case.path == "/search"
                and isinstance(body, dict)
                and isinstance(body.get("index"), str)
            ):
                del body["index"]  # a random name would always get 404; a mistake stays
            if case.path in NAMED and isinstance(body, dict) and isinstance(body.get("model"), str):
                body["model"] = "tiny"  # a random name would always get 404
            # The document does not say how many dimensions there are, or which ids are a text.
            answer = case.call_and_validate(excluded_checks=[positive_data_acceptance])
            assert answer.status_code < 500
            if answer.status_code >= 400:
                error = answer.json()["error"]
                assert error["remedy"]
                assert error["message"].endswith(error["remedy"])

        check()
