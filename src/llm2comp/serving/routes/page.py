"""The page at `/`, and the route that it alone needs: what the memory tokens of a text are like."""

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from importlib.resources import files

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from llm2comp.serving.routes.bodies import ERRORS, Strict, StrictRoute, Text, json_response
from llm2comp.serving.service import Service
from llm2comp.utils.choices import Prompt

FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/drawing.js": ("drawing.js", "text/javascript"),
    "/vectors.js": ("vectors.js", "text/javascript"),
}
"""The files of the page and their media types, by their path. They are in the folder `page`."""
HEADERS = {
    # Nothing is loaded from elsewhere and nothing is sent elsewhere, whatever the texts are.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class MemoryRequest(Strict):
    """What `/memory-tokens` reads."""

    model: str
    text: Text
    input_type: Prompt | None = Field(
        None, description="Puts the model's prompt for queries or documents before the text."
    )


class MemoryResponse(BaseModel):
    """What `/memory-tokens` answers; see `llm2comp.serving.memory_view.MemoryView`."""

    model: str
    tokens: list[str]
    memory: list[int] = Field(description="Places of the k memory tokens in `tokens`.")
    cosines: list[list[float]] = Field(description="k x k, before pooling.")
    attention: list[list[float]] = Field(
        description="k x tokens, averaged over heads and layers; each row sums to 1."
    )


def page_routes(service: Service) -> APIRouter:
    """Return `/`, the files of the page, and `/memory-tokens`."""
    router = APIRouter(route_class=StrictRoute)
    for path, (name, media_type) in FILES.items():
        router.add_api_route(path, _file(name, media_type), include_in_schema=False)

    @router.post(
        "/memory-tokens",
        response_class=Response,
        responses={**ERRORS, 200: {"model": MemoryResponse}},
    )
    async def memory(request: MemoryRequest) -> Response:
        model = service.model(request.model)
        view = await service.look(model, request.text, request.input_type)
        return json_response({"model": model.name, **asdict(view)})

    return router


def _file(name: str, media_type: str) -> Callable[[], Awaitable[Response]]:
    """Return the handler that sends a file of the page."""
    content = files("llm2comp.serving").joinpath("page", name).read_bytes()

    async def send() -> Response:
        return Response(content, media_type=f"{media_type}; charset=utf-8", headers=HEADERS)

    return send
