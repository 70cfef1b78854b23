"""The process of a server: it loads models, listens, and on SIGTERM answers what it accepted."""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Sequence
from http import HTTPStatus
from types import FrameType

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from llm2comp.errors import UserError, counted
from llm2comp.serving.app import create_app
from llm2comp.serving.loading import load_all, named_indexes, named_models
from llm2comp.serving.observation import log_json_lines
from llm2comp.serving.problems import Problem, shutting_down
from llm2comp.serving.service import Service
from llm2comp.serving.settings import Limits
from llm2comp.utils.choices import Precision

logger = logging.getLogger(__name__)
LOOPBACK = ("127.", "localhost", "::1")
KERNELS = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
"""How many sizes of matrix products oneDNN keeps compiled. By default there are 1,024, and batches
of many sizes let the memory of a server grow for a long time; fewer cost no time that was seen."""


def serve(
    models: Sequence[str],
    indexes: Sequence[str],
    host: str,
    port: int,
    tokens: tuple[bytes, ...],
    limits: Limits,
    *,
    dtype: Precision,
    merge_threshold: float | None,
    memory_tokens: int | None = None,
    batch_size: int,
) -> None:
    """Serve models until a signal asks to stop, and everything that was accepted is answered.

    A second signal ends the process at once, with status 1. So does a search that goes on after the
    first signal for longer than a request may take.

    Args:
        models: names or folders that `llm2comp.load` takes, or `NAME=FOLDER`.
        indexes: folders of indexes, or `NAME=FOLDER`. Their encoders are served too.
        host: address to listen at.
        port: to listen at; 0 takes a free one, which the log names.
        tokens: bearer tokens that clients must show one of; none lets everyone in.
        limits: of what clients may ask for.
        dtype: as in `llm2comp.load`.
        merge_threshold: as in `llm2comp.load`.
        memory_tokens: as in `llm2comp.load`.
        batch_size: texts of 64 tokens per batch.

    Raises:
        UserError: if the address cannot be used, or a model or an index cannot be loaded.
    """
    named, folders = named_models(models), named_indexes(indexes)
    listening = bind(host, port)  # before models are loaded, which takes seconds
    log_json_lines()
    os.environ.setdefault(*KERNELS)  # it is read at the first product
    encoders, opened = load_all(named, folders, dtype, merge_threshold, memory_tokens)
    service = Service(encoders, limits, batch_size, opened)
    if not tokens and not host.startswith(LOOPBACK):
        logger.warning("everyone who can reach this address may use it; give --tokens FILE")
    server = Server(service, tokens)
    server.run(sockets=[listening])
    if server.force_exit or not service.idle:
        # Python would wait for the threads that still compute.
        waiting = counted(service.waiting, "request")
        logger.warning("stopped with %s unanswered", waiting)
        logging.shutdown()
        os._exit(1)
    service.close()


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that has an address, and does not listen yet.

    Raises:
        UserError: if the address cannot be used.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        raise UserError(
            f"{host}:{port} cannot be used ({error}); choose another --port or --host"
        ) from error
    return bound


class Server(uvicorn.Server):
    """A server that goes on listening while it drains, so that `/ready` can say so.

    Args:
        service: with the models and indexes.
        tokens: as in `serve`.
    """

    def __init__(self, service: Service, tokens: tuple[bytes, ...] = ()) -> None:
        limits = service.limits
        config = uvicorn.Config(
            create_app(service, tokens),
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=limits.idle_seconds,  # type: ignore[arg-type]  # any number works
            timeout_graceful_shutdown=round(limits.seconds) + 1,
        )
        super().__init__(config)
        self.service = service
        self._latest = float("inf")

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and say where."""
        await super().startup(sockets)
        addresses = ["{}:{}".format(*one.getsockname()[:2]) for one in sockets or ()]
        fields = {"addresses": addresses, "models": list(self.service.models)}
        if self.service.indexes:
            fields["indexes"] = list(self.service.indexes)
        logger.info("serving", extra={"fields": fields})

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Drain at the first signal, and stop at once at the second."""
        self.should_exit = self.force_exit = self.service.draining
        self.service.draining = True
        self._latest = time.monotonic() + self.service.limits.seconds

    async def on_tick(self, counter: int) -> bool:
        """Stop listening when everything that was accepted is computed, or nobody waits for it."""
        done = self.service.idle or time.monotonic() > self._latest
        self.should_exit |= self.service.draining and done
        return await super().on_tick(counter)


class Connection(HttpToolsProtocol):
    """A connection that is closed if the head of a request does not come in time.

    The rest of a body that was refused must come within that time too: it is read, because a
    client that is still sending would not see the answer otherwise. uvicorn itself bounds only the
    silence after a response.
    """

    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self._expect_head()
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # on Linux: a client that does not read is cut off
            milliseconds = 1000 * (self.config.timeout_graceful_shutdown or 0)
            own = transport.get_extra_info("socket")
            own.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)

    def on_message_begin(self) -> None:
        """Wait for the rest of the head."""
        super().on_message_begin()
        self._expect_head()

    def on_headers_complete(self) -> None:
        """Let the request take its time, which the application bounds."""
        self._stop_waiting()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of a body, or drop it if the request is answered already."""
        super().on_body(body)
        if self.cycle.response_complete and self._head is None:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_waiting()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP as every other mistake is answered."""
        self._end(
            Problem(HTTPStatus.BAD_REQUEST, msg.rstrip(".").lower(), "send HTTP/1.1, and not HTTPS")
        )

    def shutdown(self) -> None:
        """End a request that has not wholly come: it was not accepted, and may never come."""
        cycle = self.cycle
        if cycle and cycle.more_body and not (cycle.response_started or self.pipeline):
            self._end(shutting_down())
        else:
            super().shutdown()

    def _end(self, problem: Problem) -> None:
        """Answer, and close the connection."""
        response = problem.response()
        lines = [
            name + b": " + value for name, value in response.raw_headers if name != b"connection"
        ]
        status = STATUS_LINE[response.status_code].rstrip()
        head = b"\r\n".join([status, *lines, b"connection: close", b"", b""])
        self.transport.write(head + bytes(response.body))
        self.transport.close()

    def _expect_head(self) -> None:
        self._stop_waiting()
        self._head = self.loop.call_later(self.timeout_keep_alive, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None
