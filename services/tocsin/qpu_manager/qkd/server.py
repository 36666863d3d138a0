"""The key server as a process: an address, TLS, and the link behind it."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from tocsin.contracts.errors import InvalidInputError, UnavailableError
from tocsin.qpu_manager.qkd.app import KeyService, make_app

MAX_CONNECTIONS = 256


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Mutual TLS: every client needs a certificate."""

    certificate: Path
    key: Path
    client_authority: Path


class KeyServer:
    """Serves keys at one address. Use with ``async with``.

    Args:
        service: where the keys come from.
        host: address to listen on; without TLS a loopback address.
        port: port to listen on, 0 for a free one.
        tls: certificates; None for plain HTTP.

    Raises:
        InvalidInputError: ``not_loopback``.
    """

    def __init__(self, service: KeyService, *, host: str, port: int, tls: TlsFiles | None = None) -> None:
        if tls is None and not _is_loopback(host):
            raise InvalidInputError(
                f"without TLS keys are served on loopback addresses only, not on {host}",
                reason="not_loopback",
                advice="give --tls-cert, --tls-key and --client-ca",
            )
        self._service = service
        self._address = (host, port)
        self._tls = tls
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None
        self.url = ""

    async def __aenter__(self) -> Self:
        host, port = self._address
        try:
            listener = socket.create_server(
                (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
            )
        except OSError as error:
            raise UnavailableError(
                f"cannot serve keys on {host} port {port}: {error.strerror or error}", reason="qkd_address"
            ) from error
        tls = self._tls
        try:
            config = uvicorn.Config(
                make_app(self._service),
                http=_NamingProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                limit_concurrency=MAX_CONNECTIONS,
                timeout_graceful_shutdown=3,
                ssl_certfile=str(tls.certificate) if tls else None,
                ssl_keyfile=str(tls.key) if tls else None,
                ssl_ca_certs=str(tls.client_authority) if tls else None,
                ssl_cert_reqs=ssl.CERT_REQUIRED if tls else ssl.CERT_NONE,
            )
            config.load()
        except (OSError, ssl.SSLError) as error:
            listener.close()
            raise InvalidInputError(f"the server's TLS files: {error}", reason="bad_qkd_files") from error
        self._server = _Server(config)
        shown = f"[{host}]" if ":" in host else host
        self.url = f"{'https' if tls else 'http'}://{shown}:{listener.getsockname()[1]}"
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]), name="qkd")
        while not self._server.started and not self._task.done():  # noqa: ASYNC110 - uvicorn has no event
            await asyncio.sleep(0.005)
        if self._task.done():
            self._task.result()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.should_exit = True
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
        await self._service.stop()


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: who runs it has them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _NamingProtocol(H11Protocol):
    """A connection that tells the application whose certificate the client has proven to hold."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        if (name := _common_name(transport.get_extra_info("peercert"))) is not None:
            self.app_state = {**self.app_state, "sae": name}


def _common_name(certificate: Any) -> str | None:
    """Return the only common name of a certificate as Python's TLS shows it."""
    if not isinstance(certificate, dict):
        return None
    names = [value for part in certificate.get("subject", ()) for kind, value in part if kind == "commonName"]
    return names[0] if len(names) == 1 else None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
