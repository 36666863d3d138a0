"""Answer three questions over HTTP: how much (``/metrics``), alive (``/healthz``), ready (``/readyz``).

Runs in threads of its own, so that neither a scrape nor a slow client holds up the event loop, and the
process answers while its loop is busy. Reads figures, changes nothing.

Limits: GET only, no body is read, ``MAX_CLIENTS`` at a time and ``timeout_s`` for each from its first byte to
its last; more clients are cut off. Loopback unless told otherwise, without a login: what is shown are
figures, and whoever binds it to a network decides who reaches it there.
"""

from __future__ import annotations

import io
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from socketserver import TCPServer, ThreadingMixIn
from types import TracebackType
from typing import Any, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app

from tocsin.contracts.errors import UnavailableError
from tocsin.telemetry.exposition import MetricsCollector
from tocsin.telemetry.logs import get_logger
from tocsin.telemetry.metrics import Metrics

LOOPBACK = "127.0.0.1"

MAX_CLIENTS = 16
"""Most clients at a time, a thread each: some collectors, a probe, and a person."""

TIMEOUT_S = 5.0
"""Longest a client may take, in seconds: half of Prometheus's default scrape timeout of 10 s."""

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class HealthStatistics:
    """What the server has answered since its start."""

    answered: int
    cut_off: int
    """Clients that came when ``MAX_CLIENTS`` were there, took too long or broke off."""


class HealthServer:
    """Serves the health of this process.

    Args:
        metrics: the figures shown.
        ready: says whether work may be sent here. Called in another thread than the event loop's: it reads
            a flag, and touches nothing that belongs to the loop.
        alive: says whether the process should be left running; by default it is while it answers.
        host: address to listen on.
        port: port to listen on, 0 for a free one.
        timeout_s: longest a client may take, in seconds.
    """

    def __init__(
        self,
        metrics: Metrics,
        ready: Callable[[], bool],
        *,
        alive: Callable[[], bool] = lambda: True,
        host: str = LOOPBACK,
        port: int = 0,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        registry = CollectorRegistry()
        registry.register(MetricsCollector(metrics))
        self._app = _Application(registry, ready, alive)
        self._address = (host, port)
        self._timeout_s = timeout_s
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen and serve. Returns at once; a second start raises ``RuntimeError``.

        Raises:
            UnavailableError: the address cannot be listened on.
        """
        if self._server is not None:
            raise RuntimeError("the health server is already started")
        host, port = self._address
        try:
            server = _Server(host, port, self._timeout_s)
        except OSError as error:
            raise UnavailableError(
                f"cannot serve health on {host} port {port}: {error.strerror or error}",
                reason="health_address",
                advice="choose another port, or 0 for a free one",
            ) from error
        server.set_app(self._app)
        self._server = server
        self._thread = threading.Thread(target=server.serve, name="health", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop listening; clients that are being answered get their answer. Takes milliseconds."""
        server, thread = self._server, self._thread
        self._server = self._thread = None
        if server is None or thread is None:
            return
        server.stop()
        thread.join(timeout=self._timeout_s)
        server.server_close()

    @property
    def port(self) -> int:
        """The port listened on; ``RuntimeError`` unless started."""
        if self._server is None:
            raise RuntimeError("the health server is not started")
        return self._server.server_port

    def statistics(self) -> HealthStatistics:
        """Return what was answered; zeros unless started."""
        server = self._server
        return HealthStatistics(
            answered=self._app.answered,
            cut_off=0 if server is None else server.cut_off,
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class _Application:
    """The WSGI application: three paths."""

    def __init__(
        self, registry: CollectorRegistry, ready: Callable[[], bool], alive: Callable[[], bool]
    ) -> None:
        self._metrics_app = make_wsgi_app(registry)
        self._ready = ready
        self._alive = alive
        self.answered = 0

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        self.answered += 1
        if environ["REQUEST_METHOD"] != "GET":
            return _answer(start_response, "405 Method Not Allowed", ("Allow", "GET"))
        try:
            match environ["PATH_INFO"]:
                case "/metrics":
                    body: Iterable[bytes] = self._metrics_app(environ, start_response)
                    return body
                case "/healthz":
                    status = "200 OK" if self._alive() else "503 Service Unavailable"
                case "/readyz":
                    status = "200 OK" if self._ready() else "503 Service Unavailable"
                case _:
                    status = "404 Not Found"
        except Exception:  # noqa: BLE001 - logged, and the prober is told
            _log.exception("health_check_failed")
            status = "500 Internal Server Error"
        return _answer(start_response, status)


def _answer(start_response: StartResponse, status: str, *headers: tuple[str, str]) -> Iterable[bytes]:
    body = f"{status[4:].lower()}\n".encode()
    start_response(
        status,
        [
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            *headers,
        ],
    )
    return [body]


class _DeadlineReader(io.RawIOBase):
    """Reads a socket until a deadline, however slowly its bytes come; writes then have what is left."""

    def __init__(self, connection: socket.socket, timeout_s: float) -> None:
        self._connection = connection
        self._deadline_s = time.monotonic() + timeout_s

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("client took too long")
        self._connection.settimeout(left_s)
        return self._connection.recv_into(buffer)


class _Handler(WSGIRequestHandler):
    """One client, one request, no access log."""

    server: _Server

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_DeadlineReader(self.connection, self.server.client_timeout_s))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Keep no access log."""

    def get_stderr(self) -> io.StringIO:
        """Swallow what wsgiref prints when a client breaks off."""
        return io.StringIO()


class _Server(ThreadingMixIn, WSGIServer):
    """A threaded server that sleeps until a client or its own stop wakes it."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 32

    def __init__(self, host: str, port: int, client_timeout_s: float) -> None:
        self.client_timeout_s = client_timeout_s
        self.cut_off = 0
        self._free = threading.BoundedSemaphore(MAX_CLIENTS)
        self._stopping = threading.Event()
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Bind without the look-up of the host's name that the base class makes: it may take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.socket.getsockname()[:2]
        self.setup_environ()

    def serve(self) -> None:
        """Serve until stopped."""
        while not self._stopping.is_set():
            self.handle_request()

    def stop(self) -> None:
        """Wake ``serve`` by a connection, so that it need not wake by itself again and again."""
        self._stopping.set()
        host = str(self.server_name)
        host = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host)  # noqa: S104 - what is compared, not bound
        try:
            socket.create_connection((host, self.server_port), timeout=1.0).close()
        except OSError:
            # Others queue for a connection, and wake it as well.
            return

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept; when that fails (no file descriptor free), wait before the loop tries again."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(0.05)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the client a thread, or cut it off when there is none or the server stops."""
        if self._stopping.is_set():
            self.shutdown_request(request)
        elif not self._free.acquire(blocking=False):
            self.cut_off += 1
            self.shutdown_request(request)
        else:
            try:
                super().process_request(request, client_address)
            except BaseException:
                self._free.release()
                raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one client in its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base class's
        """Count a client that took too long or broke off; log what is our own fault."""
        error = sys.exc_info()[1]
        self.cut_off += 1
        if not isinstance(error, OSError):
            _log.error("health_request_failed", exc_info=error)
