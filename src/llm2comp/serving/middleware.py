"""What every request goes through: it is observed, bounded in time and size, and authenticated."""

import asyncio
import hmac
import logging
import time
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm2comp.serving.observation import Metrics
from llm2comp.serving.problems import Problem
from llm2comp.serving.settings import Limits

logger = logging.getLogger(__name__)

OPEN = frozenset({"/health", "/ready"})
"""Paths that need no token: what starts and stops servers must reach them."""
CLIENT_GONE = 499
"""The status in the log, as in nginx, of a request whose client left before the answer."""


class Observed:
    """Logs and counts each request."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        status, start = CLIENT_GONE, time.perf_counter()

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except Exception:
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            raise
        finally:
            self._note(scope, int(status), time.perf_counter() - start)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        # The path itself may be anything, so it is neither a label nor in the log.
        route = getattr(scope.get("route"), "path", "other")
        self.metrics.requests.labels(route, status).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        fields = {
            "method": scope["method"],
            "route": route,
            "status": status,
            "seconds": round(seconds, 4),
            "client": (scope.get("client") or ("",))[0],
        }
        logger.info("request", extra={"fields": fields})


class Bounded:
    """Ends a request that is too large or takes too long, and one whose client has gone."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app = app
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        exchange = _Exchange(receive, send, Headers(scope=scope), self.limits.body)
        answer = asyncio.create_task(self._answer(scope, exchange))
        gone = asyncio.create_task(exchange.client_gone())
        try:
            await asyncio.wait(
                {answer, gone}, timeout=self.limits.seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if answer.done() or exchange.answered:
                await answer
            elif not gone.done() and not exchange.started:
                await self._late(exchange).response()(scope, receive, send)
        except asyncio.CancelledError:  # by a second signal
            if not exchange.started:
                await self._stopped().response()(scope, receive, send)
        finally:
            answer.cancel()  # what waits for a model is then not computed
            gone.cancel()

    async def _answer(self, scope: Scope, exchange: "_Exchange") -> None:
        await self.app(scope, exchange.receive, exchange.send)

    def _stopped(self) -> Problem:
        return Problem(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "the server was stopped before there was an answer",
            "try again on another server",
            headers={"Connection": "close"},
        )

    def _late(self, exchange: "_Exchange") -> Problem:
        limit = self.limits.seconds
        seconds = f"{limit:g} {'second' if limit == 1 else 'seconds'}"
        if not exchange.body_read.is_set():
            return Problem(
                HTTPStatus.REQUEST_TIMEOUT,
                f"the body did not come within {seconds}",
                "send it faster, or in several requests",
                headers={"Connection": "close"},
            )
        return Problem(
            HTTPStatus.SERVICE_UNAVAILABLE,
            f"there was no answer within {seconds}",
            "send fewer texts per request, or try again after the seconds in Retry-After",
            headers={"Retry-After": "5"},
        )


class _Exchange:
    """The messages of a request and its response."""

    def __init__(self, receive: Receive, send: Send, headers: Headers, most_bytes: int) -> None:
        self._receive = receive
        self._send = send
        self._announced = int(headers.get("content-length", 0))
        self._most_bytes = most_bytes
        self._bytes = 0
        self._empty = not self._announced and "transfer-encoding" not in headers
        self.body_read = asyncio.Event()
        if self._empty:  # nobody may ever ask for the body of a GET
            self.body_read.set()
        self.started = False
        self.answered = False

    async def receive(self) -> Message:
        """Return a part of the body.

        Raises:
            Problem: if the body is too large.
        """
        if self._empty:  # `client_gone` may have taken the message already
            self._empty = False
            return {"type": "http.request", "body": b"", "more_body": False}
        self._require_small(self._announced)
        message = await self._receive()
        self._bytes += len(message.get("body", b""))
        self._require_small(self._bytes)
        if not message.get("more_body", False):
            self.body_read.set()
        return message

    def _require_small(self, size: int) -> None:
        if size > self._most_bytes:
            raise Problem(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the body has more than {self._most_bytes} bytes",
                "send fewer or shorter texts per request",
            )

    async def send(self, message: Message) -> None:
        """Send a part of the response."""
        self.started = True
        await self._send(message)
        self.answered = message["type"] == "http.response.body" and not message.get("more_body")

    async def client_gone(self) -> None:
        """Return when the client has closed the connection, after its whole body has come."""
        await self.body_read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass


class Authenticated:
    """Lets only those in who show one of the tokens.

    Args:
        app: behind it.
        tokens: of which a request must show one.
        public: paths that need no token.
    """

    def __init__(self, app: ASGIApp, tokens: tuple[bytes, ...], public: frozenset[str]) -> None:
        self.app = app
        self.tokens = tokens
        self.public = public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["path"] in self.public or self._has_token(Headers(scope=scope)):
            await self.app(scope, receive, send)
            return
        problem = Problem(
            HTTPStatus.UNAUTHORIZED,
            "there is no token in the request, or a wrong one",
            "send the header Authorization: Bearer TOKEN",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await problem.response()(scope, receive, send)

    def _has_token(self, headers: Headers) -> bool:
        scheme, _, shown = headers.get("authorization", "").partition(" ")
        # All tokens are compared, each in constant time, so that time tells nothing about them.
        same = [hmac.compare_digest(shown.strip().encode("latin-1"), own) for own in self.tokens]
        return scheme.lower() == "bearer" and any(same)
