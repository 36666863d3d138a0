"""The gateway's shell: questions come in over HTTP, are asked on the bus, and the answers go back."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import ClassVar

from tocsin.bus import Bus, Service
from tocsin.bus.roster import read_roster
from tocsin.bus.service import VERSION
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import MONITOR_FIGURES, PING, QPU_LIST
from tocsin.contracts.errors import TocsinError, UnavailableError
from tocsin.contracts.identifiers import ServiceName
from tocsin.contracts.operations import FiguresRequest, PingRequest, Pong
from tocsin.contracts.quantum import QpuListRequest
from tocsin.gateway.api import build_app
from tocsin.gateway.server import HttpServer
from tocsin.gateway.settings import GatewaySettings
from tocsin.gateway.status import SystemStatus, system_status
from tocsin.gateway.tokens import ApiToken
from tocsin.telemetry import get_logger

log = get_logger(__name__)


class GatewayService(Service[GatewaySettings]):
    """Serves what the system knows over REST."""

    name: ClassVar[ServiceName] = ServiceName.GATEWAY

    def __init__(self, bus: Bus, settings: GatewaySettings) -> None:
        super().__init__(bus, settings)
        token_file = settings.api_token_file
        self._token = ApiToken.load(token_file) if token_file else None
        self.http = HttpServer(
            build_app(
                {
                    "/status": self.system_status,
                    "/agents": self.agents,
                    "/qpus": self.qpus,
                    "/figures": self.figures,
                },
                version=VERSION,
                token=self._token,
                max_body_bytes=settings.api_max_body_bytes,
                timeout_s=settings.api_request_timeout_s,
            ),
            host=settings.api_host,
            port=settings.api_port,
            max_connections=settings.api_max_connections,
            receive_timeout_s=settings.api_receive_timeout_s,
        )

    async def started(self) -> None:
        """Listen, and tell where."""
        await self.http.start()
        if not _is_loopback(self.settings.api_host):
            log.warning("api_without_tls", host=self.settings.api_host, advice="put a TLS proxy before it")
        log.info("api_listening", url=self.http.url, authenticated=self._token is not None)
        await asyncio.to_thread(self._write_url)

    async def stopping(self) -> None:
        """Listen no more."""
        await self.http.stop()
        if self.settings.url_file is not None:
            await asyncio.to_thread(self.settings.url_file.unlink, missing_ok=True)

    async def agents(self) -> Message:
        """Return the roster."""
        return await read_roster(self.bus, timeout_s=self.settings.api_bus_timeout_s)

    async def qpus(self) -> Message:
        """Return the QPUs."""
        return await self.bus.request(QPU_LIST, QpuListRequest(), timeout_s=self.settings.api_bus_timeout_s)

    async def figures(self) -> Message:
        """Return the monitor's figures."""
        return await self.bus.request(
            MONITOR_FIGURES, FiguresRequest(), timeout_s=self.settings.api_bus_timeout_s
        )

    async def system_status(self) -> SystemStatus:
        """Ask every service at once whether it is ready."""
        names = tuple(PING)
        answers = await asyncio.gather(*(self._ping_service(name) for name in names))
        return system_status(dict(zip(names, answers, strict=True)), version=VERSION)

    async def _ping_service(self, name: ServiceName) -> Pong | TocsinError:
        try:
            return await self.bus.request(PING[name], PingRequest(), timeout_s=self.settings.api_bus_timeout_s)
        except TocsinError as error:
            return error

    def _write_url(self) -> None:
        """Write the address for whoever started this process, whole or not at all."""
        path = self.settings.url_file
        if path is None:
            return
        fresh = path.with_name(f"{path.name}.{self.settings.instance}.new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_text(f"{self.http.url}\n")
            fresh.replace(path)
        except OSError as error:
            raise UnavailableError(
                f"cannot write {path}: {error.strerror}",
                reason="url_file",
                advice="set TOCSIN_URL_FILE to a place that this process may write to",
            ) from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
