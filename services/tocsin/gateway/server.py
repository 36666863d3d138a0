"""The HTTP server, in the event loop that the bus runs in.

Signals stay the harness's, logs go through its logging. Beyond what uvicorn bounds, a connection over
``max_connections`` is told so and cut off, and so is a client that does not send its request in time: uvicorn's
own time limit starts only after a first answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Iterator
from typing import cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from tocsin.contracts.errors import ExhaustedError, TocsinError, UnavailableError
from tocsin.gateway.problems import MEDIA_TYPE, problem_of

MAX_HEAD_BYTES = 16 * 1024
"""Longest request line with its headers; more is answered with 400."""
SHUTDOWN_S = 3
"""How long answers that are on their way may take when the service stops."""
BACKLOG = 128


class HttpServer:
    """Serves an application on one address."""

    def __init__(
        self, app: ASGIApp, *, host: str, port: int, max_connections: int, receive_timeout_s: float
    ) -> None:
        """Bound it; :meth:`start` listens.

        Args:
            app: the application.
            host: address to listen on.
            port: port to listen on, 0 for a free one.
            max_connections: most clients at a time.
            receive_timeout_s: how long a client may take to send a request, or stay idle.
        """
        self._address = (host, port)
        config = uvicorn.Config(
            app,
            http=_protocol(max_connections, receive_timeout_s),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            timeout_graceful_shutdown=SHUTDOWN_S,
            backlog=BACKLOG,
        )
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None
        self.url = ""

    async def start(self) -> None:
        """Listen and serve; returns when it does.

        Raises:
            UnavailableError: ``api_address``: the address cannot be listened on.
        """
        host, port = self._address
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError as error:
            raise UnavailableError(
                f"cannot serve the API on {host} port {port}: {error.strerror or error}",
                reason="api_address",
                advice="set TOCSIN_API_PORT to another port, or to 0 for a free one",
            ) from error
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{listener.getsockname()[1]}"
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]), name="http")
        while not self._server.started and not self._task.done():  # noqa: ASYNC110 - uvicorn has no event
            await asyncio.sleep(0.005)
        if self._task.done():
            self._task.result()

    async def stop(self) -> None:
        """Listen no more, and let the answers that are on their way arrive."""
        self._server.should_exit = True
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the harness has them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _protocol(max_connections: int, receive_timeout_s: float) -> type[H11Protocol]:
    """Return the protocol of a connection, bounded."""
    full = _raw_refusal(ExhaustedError(f"{max_connections} clients are here", reason="too_many_clients"))

    class Bounded(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
            if len(self.connections) >= max_connections:
                self.transport = transport
                transport.write(full)
                transport.close()
                return
            super().connection_made(transport)
            self._expect_request()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget_deadline()
            super().connection_lost(exc)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._expect_request()

        def _expect_request(self) -> None:
            self._forget_deadline()
            self._deadline = self.loop.call_later(receive_timeout_s, self._too_slow)

        def _forget_deadline(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _too_slow(self) -> None:
            cycle = cast("RequestResponseCycle | None", self.cycle)
            if cycle is None or cycle.response_complete:
                self.transport.close()

    return Bounded


def _raw_refusal(error: TocsinError) -> bytes:
    """Return a whole HTTP answer, for a client that never reaches the application."""
    problem = problem_of(error, "/")
    body = json.dumps(problem.body).encode()
    headers = {
        "Content-Type": MEDIA_TYPE,
        "Content-Length": str(len(body)),
        "Connection": "close",
        **problem.headers,
    }
    lines = [f"HTTP/1.1 {problem.status:d} {problem.status.phrase}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body
