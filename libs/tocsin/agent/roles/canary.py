"""The canary: things that nobody has a reason to touch.

A TCP port on loopback and a file with a token. Whoever connects to the port is named in a HIGH alert, with a
finding that can be assessed; if the file is changed or removed, a HIGH alert says so and can name nobody. The
port is announced (event ``agent.sensor``) as ``canary``: whoever makes ordinary traffic leaves it alone.

A touch is reported as kind SCAN (T1046 or T1595), for nothing else is known of it than that a port was tried.
Its score is TOUCHED: no ordinary client exists; what remains is a scanner that was ordered. One alert for
each address in QUIET_S; further touches are counted (``canary.touches``).

Does not notice that the file is *read*: nothing on the common file systems tells, unasked and cheaply.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from tocsin.agent.agent import Agent
from tocsin.agent.roles.dialogues import Turn
from tocsin.agent.roles.honeypot import Honeypot, Visit, flow_of
from tocsin.agent.roles.memory import Memory
from tocsin.agent.roles.patience import patiently
from tocsin.agent.roles.sensors import DECEPTION
from tocsin.analysis import techniques
from tocsin.analysis.hosts import is_internal
from tocsin.analysis.windows import WINDOW_S, Window, features_of
from tocsin.contracts.catalogue import EVENT_SENSOR, THREAT_ALERT
from tocsin.contracts.errors import TocsinError, UnavailableError
from tocsin.contracts.identifiers import Priority, Role, Severity
from tocsin.contracts.observations import Finding, FindingKind, SensorReady
from tocsin.contracts.routing import ThreatAlert
from tocsin.telemetry import get_logger

IMITATES = "canary"
TOUCHED = 0.9
"""Score of a touch, on the detectors' scale; a scan of 17 ports that all refuse scores as much."""
QUIET_S = 600.0
MAX_ADDRESSES = 1024
LOOK_S = 2.0
"""How often the file is looked at."""
SEND_WITHIN_S = 15.0

log = get_logger(__name__)


class Silence:
    """A dialogue that says nothing and ends at the first word."""

    def greet(self) -> bytes:
        """Say nothing."""
        return b""

    def feed(self, data: bytes) -> Turn:  # noqa: ARG002 - the protocol's signature
        """End."""
        return Turn(done=True)


def finding_of(visit: Visit, canary: str) -> Finding:
    """Return the finding of one touch; its features are those of this one connection."""
    flow = flow_of(visit)
    internal = is_internal(flow.source)
    return Finding(
        kind=FindingKind.SCAN,
        subject=flow.source,
        internal=internal,
        targets=(flow.destination,),
        score=TOUCHED,
        technique=techniques.NETWORK_SERVICE_DISCOVERY if internal else techniques.ACTIVE_SCANNING,
        evidence=(f"connected to canary {canary} at {flow.destination} port {flow.destination_port}",),
        features=features_of(Window(flow.source, flow.at_s, WINDOW_S, [flow])),
        source=f"{DECEPTION}{canary}",
        first_s=flow.at_s,
        last_s=flow.at_s,
        connections=1,
    )


class Canary(Agent):
    """Watches what must not be touched."""

    role = Role.CANARY

    def __init__(self, name: str, *, address: str = "127.0.0.1") -> None:
        super().__init__(name)
        self._address = address
        self._socket = Honeypot(
            IMITATES, Silence, self._on_visit, now_s=lambda: self.host.now_ns() / 1e9, max_seconds=1.0
        )
        self._alerted: Memory[str, float] = Memory(MAX_ADDRESSES)
        """When an address was last alerted, seconds since the epoch."""
        self._token = b""

    @property
    def _path(self) -> Path:
        return self.host.state_dir / f"{self.name}.canary"

    async def started(self) -> None:
        """Put out the port and the file.

        Raises:
            UnavailableError: ``no_port`` or ``no_file``.
        """
        self._token = os.urandom(32).hex().encode()
        try:
            await asyncio.to_thread(self._path.write_bytes, self._token)
        except OSError as error:
            raise UnavailableError(f"{self._path.name}: {error.strerror}", reason="no_file") from error
        port = await self._socket.open(self._address)
        ready = SensorReady(agent=self.name, address=self._address, port=port, imitates=IMITATES)
        await self.host.event(self, EVENT_SENSOR, ready)
        self.host.spawn(self._watch_file(), f"canary {self.name}")

    async def stopping(self) -> None:
        """Close the port."""
        await self._socket.close()

    def _on_visit(self, visit: Visit) -> None:
        self.host.metrics.count("canary.touches")
        address = visit.client[0]
        last_s = self._alerted.get(address)
        if last_s is not None and visit.at_s < last_s + QUIET_S:
            return
        self._alerted.keep(address, visit.at_s)
        finding = finding_of(visit, self.name)
        alert = ThreatAlert(
            severity=Severity.HIGH, summary=f"{address} touched canary {self.name}", finding=finding
        )
        self.host.spawn(self._alert(alert), f"alert of {self.name}")

    async def _watch_file(self) -> None:
        """Look at the file until it is not what it was; one alert is enough."""
        while True:
            if not await asyncio.to_thread(self._is_intact):
                break
            await asyncio.sleep(LOOK_S)
        self.host.metrics.count("canary.touches")
        summary = f"The token file of canary {self.name} was changed or removed"
        await self._alert(ThreatAlert(severity=Severity.HIGH, summary=summary))

    def _is_intact(self) -> bool:
        try:
            with self._path.open("rb") as file:
                return file.read(len(self._token) + 1) == self._token
        except OSError:
            return False

    async def _alert(self, alert: ThreatAlert) -> None:
        async def attempt() -> object:
            return await self.send(THREAT_ALERT, alert, audience="all", priority=Priority.HIGH)

        try:
            await patiently(attempt, within_s=SEND_WITHIN_S)
        except TocsinError:
            self.host.metrics.count("canary.alerts_lost")
            log.exception("alert_lost", agent=self.name, summary=alert.summary)
