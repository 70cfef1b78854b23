"""Errors that a client gets: JSON in the shape of OpenAI's, with what to do."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import cast

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from llm2comp.data.text_files import replace_surrogates

SEE = "see /openapi.json"
REMEDIES = {
    HTTPStatus.BAD_REQUEST: "send a body of JSON in UTF-8, with Content-Type: application/json",
    HTTPStatus.NOT_FOUND: f"{SEE} for the paths that there are",
    HTTPStatus.METHOD_NOT_ALLOWED: "use a method that the header Allow names",
}
"""What to do about an error of the framework, by its status."""


class ProblemDetail(BaseModel):
    """What is wrong; `message` ends with the `remedy`, because clients show it alone."""

    message: str
    remedy: str
    type: str
    param: str | None
    code: str


class ProblemBody(BaseModel):
    """The body of every response that is an error."""

    error: ProblemDetail


class Problem(HTTPException):
    """A request that gets an error.

    Args:
        status: of the response.
        message: what is wrong. It must not quote a text.
        remedy: what the client can do.
        param: the field of the request at fault.
        headers: of the response.
    """

    def __init__(
        self,
        status: HTTPStatus,
        message: str,
        remedy: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.remedy = remedy
        self.param = param

    def response(self) -> Response:
        """Return the response that tells a client."""
        remedy = replace_surrogates(self.remedy)
        detail = ProblemDetail(
            message=f"{replace_surrogates(self.detail)}; {remedy}",
            remedy=remedy,
            type="invalid_request_error" if self.status_code < 500 else "server_error",
            param=None if self.param is None else replace_surrogates(self.param),
            code=HTTPStatus(self.status_code).phrase.lower().replace(" ", "_"),
        )
        content = ProblemBody(error=detail).model_dump_json()
        return Response(content, self.status_code, self.headers, "application/json")


def shutting_down() -> Problem:
    """Return the error of a request that comes too late."""
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "the server is shutting down",
        "try again after the seconds in Retry-After, or on another server",
        headers={"Retry-After": "5", "Connection": "close"},
    )


async def explain_http_error(_: Request, error: Exception) -> Response:
    """Return the response for an error of ours, or of the framework."""
    known = cast(HTTPException, error)
    if isinstance(known, Problem):
        return known.response()
    status = HTTPStatus(known.status_code)
    return Problem(
        status, known.detail, REMEDIES.get(status, SEE), headers=known.headers
    ).response()


async def explain_invalid(_: Request, error: Exception) -> Response:
    """Return the response for a body that is not what the route reads.

    The first of pydantic's errors is told, without the value: it may be a text.
    """
    first = cast(RequestValidationError, error).errors()[0]
    place = [part for part in first["loc"][1:] if isinstance(part, str)]
    status = HTTPStatus.BAD_REQUEST
    if not place:  # no JSON at all, or no object
        return Problem(status, "the body is not a JSON object", REMEDIES[status]).response()
    field = place[0]
    items = [part for part in first["loc"][2:] if isinstance(part, int)]
    where = "".join(f"item {item} of " for item in reversed(items)) + field
    if first["type"] == "extra_forbidden":
        message, remedy = (
            f"the field {json.dumps(field)} is not known",
            "check its name, or leave it out",
        )
    elif first["type"] == "missing":
        message, remedy = f"the field {field!r} is missing", f"{SEE} for what it must be"
    else:
        said = first["msg"][0].lower() + first["msg"][1:]
        if items:
            said = f"{said}, and it is {_kind(first['input'])}"
        message, remedy = f"{where}: {said}", f"{SEE} for what it must be"
    return Problem(status, message, remedy, param=field).response()


def _kind(value: object) -> str:
    """Return what a value of JSON is, without the value."""
    kinds = {bool: "a boolean", str: "a string", list: "a list", dict: "an object"}
    return "null" if value is None else kinds.get(type(value), "a number")


async def explain_fault(_: Request, __: Exception) -> Response:
    """Return the response for a fault of the server; its log has more."""
    return Problem(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "the server failed",
        "try again; if it fails again, its log says where",
    ).response()
