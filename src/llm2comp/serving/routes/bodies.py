"""What the bodies of several routes have in common."""

import base64
from http import HTTPStatus
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pydantic_core
from fastapi import Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from llm2comp.serving.problems import ProblemBody

Text = Annotated[str, StringConstraints(min_length=1)]
Tokens = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Texts = Annotated[list[Text], Field(min_length=1)]
TokenLists = Annotated[list[Tokens], Field(min_length=1)]
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


def json_response(content: Any) -> Response:
    """Return a response without the checks that the framework makes of its own models."""
    return Response(pydantic_core.to_json(content), media_type="application/json")


def base64_of(row: npt.NDArray[np.float32]) -> str:
    """Return a vector as float32, little endian, in base64."""
    return base64.b64encode(row.astype("<f4").tobytes()).decode()
