"""The application: its routes, what every request goes through, and its errors."""

from http import HTTPStatus

from fastapi import FastAPI, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from llm2comp.serving.middleware import OPEN, Authenticated, Bounded, Observed
from llm2comp.serving.problems import (
    Problem,
    explain_fault,
    explain_http_error,
    explain_invalid,
)
from llm2comp.serving.routes.bodies import ERRORS
from llm2comp.serving.routes.openai import openai_routes
from llm2comp.serving.routes.others import other_routes
from llm2comp.serving.routes.page import FILES, page_routes
from llm2comp.serving.routes.search import search_routes
from llm2comp.serving.service import Service
from llm2comp.version import __version__


def create_app(service: Service, tokens: tuple[bytes, ...] = ()) -> FastAPI:
    """Return the ASGI application of a service.

    Args:
        service: with the models.
        tokens: bearer tokens that clients must show one of; none lets everyone in.
    """
    app = FastAPI(
        title="llm2comp",
        version=__version__,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={
            HTTPException: explain_http_error,
            RequestValidationError: explain_invalid,
            Exception: explain_fault,
        },
    )
    app.include_router(openai_routes(service))
    app.include_router(other_routes(service))
    app.include_router(search_routes(service))
    app.include_router(page_routes(service))
    _add_operation_routes(app, service)
    if tokens:
        app.add_middleware(Authenticated, tokens=tokens, public=OPEN.union(FILES))
    app.add_middleware(Bounded, limits=service.limits)
    app.add_middleware(Observed, metrics=service.metrics)  # the last one is the outermost
    return app


def _add_operation_routes(app: FastAPI, service: Service) -> None:
    """Add what programs ask that run servers."""

    @app.get("/health", responses=ERRORS)
    async def health() -> dict[str, str]:
        if not service.alive:
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "the thread of a model has ended",
                "start the server again; its log says why",
            )
        return {"status": "alive"}

    @app.get("/ready", responses=ERRORS)
    async def ready() -> dict[str, str]:
        if service.draining:
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "the server is shutting down",
                "send requests to another server",
            )
        return {"status": "ready"}

    @app.get("/metrics", response_class=PlainTextResponse, responses=ERRORS)
    async def metrics() -> Response:
        return Response(service.metrics.page(), media_type=CONTENT_TYPE_LATEST)
