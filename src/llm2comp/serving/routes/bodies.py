"""What the bodies of several routes have in common."""

import base64
import json
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pydantic_core
from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag

from llm2comp.serving.problems import Problem, ProblemBody

Text = Annotated[str, StringConstraints(min_length=1)]
Tokens = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Texts = Annotated[list[Text], Field(min_length=1)]
TokenLists = Annotated[list[Tokens], Field(min_length=1)]


def _form(given: Any) -> str | None:
    """Return which form an input has; its first item decides, so that a wrong one is told."""
    if isinstance(given, str):
        return "text"
    if not isinstance(given, list):
        return None
    first = given[0] if given else ""
    return {int: "tokens", list: "token lists"}.get(type(first), "texts")


TextOrTexts = Annotated[
    Annotated[Text, Tag("text")] | Annotated[Texts, Tag("texts")],
    Discriminator(
        lambda given: {"text": "text", None: None}.get(_form(given), "texts"),
        custom_error_type="form",
        custom_error_message="give a text, or a list of texts",
    ),
]
Input = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[Texts, Tag("texts")]
    | Annotated[Tokens, Tag("tokens")]
    | Annotated[TokenLists, Tag("token lists")],
    Discriminator(
        _form,
        custom_error_type="form",
        custom_error_message="give a text, a list of texts, token ids, or lists of token ids",
    ),
]
ERRORS: dict[int | str, dict[str, Any]] = {
    int(status): {"model": ProblemBody}
    for status in (
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.NOT_FOUND,
        HTTPStatus.METHOD_NOT_ALLOWED,
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        HTTPStatus.SERVICE_UNAVAILABLE,
    )
}
"""The errors of all routes that embed, for the OpenAPI document."""


class Strict(BaseModel):
    """A request: an unknown field is an error, because a misspelt one would have no effect."""

    model_config = ConfigDict(strict=True, extra="forbid")


class _StrictRequest(Request):
    """A request whose body names no field twice: one of the two would have no effect."""

    async def json(self) -> Any:
        """Return the body.

        Raises:
            Problem: 400 if a field is there twice.
        """
        return json.loads(await self.body(), object_pairs_hook=_without_repeats)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise Problem(
                HTTPStatus.BAD_REQUEST,
                f"the field {json.dumps(name)} is there twice",
                "give it once",
                param=name,
            )
        fields[name] = value
    return fields


class StrictRoute(APIRoute):
    """A route that reads its body strictly."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        """Return what answers a request."""
        usual = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await usual(_StrictRequest(request.scope, request.receive))

        return handle


def json_response(content: Any) -> Response:
    """Return a response without the checks that the framework makes of its own models."""
    # JSON has no infinite numbers, which the metadata of an index may be.
    body = pydantic_core.to_json(content, inf_nan_mode="strings")
    return Response(body, media_type="application/json")


def base64_of(row: npt.NDArray[np.float32]) -> str:
    """Return a vector as float32, little endian, in base64."""
    return base64.b64encode(row.astype("<f4").tobytes()).decode()
