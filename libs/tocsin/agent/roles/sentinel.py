"""The sentinel: from observations to alerts.

Observations of a capture come by request (OBSERVE) from whoever reads it; those of honeypots come as routed
work from deception agents, and from nobody else. What the detection finds is alerted to all agents, once for
each kind and subject, and again when it has become clearly stronger (:mod:`tocsin.agent.roles.alerting`).

The honeypots' windows are judged while they are open, so that an attack is alerted while it goes on: at most
every LOOK_S, and never for more than a tenth of the time. A capture's windows are judged when they close, the
last ones with the final batch.

The logs that its host's settings name (``sentinel_logs``) are followed as they grow (:mod:`tocsin.agent.roles.logs`):
read and judged every LOOK_S at most, and gone on with after a restart. A capture and the honeypots' windows are in
memory only: a capture must then be read again from its start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from tocsin.agent.agent import Agent
from tocsin.agent.roles.alerting import alerts_of
from tocsin.agent.roles.logs import SentinelLog
from tocsin.agent.roles.patience import patiently
from tocsin.agent.roles.sensors import DECEPTION, HONEYPOTS
from tocsin.agent.roles.sources import Captures, LiveSource
from tocsin.bus import Context
from tocsin.contracts.analysis import Assessment
from tocsin.contracts.catalogue import THREAT_ALERT
from tocsin.contracts.errors import DeniedError, InvalidInputError, TocsinError
from tocsin.contracts.identifiers import Priority, Role
from tocsin.contracts.observations import Finding, Incident, Observations, ObservationsTaken
from tocsin.contracts.routing import ThreatAlert
from tocsin.telemetry import get_logger

LOOK_S = 0.25
MAX_LOOK_SHARE = 0.1
SEND_WITHIN_S = 5.0
"""How long an alert is tried to be sent; an OBSERVE that waits for it has timed out by then."""

log = get_logger(__name__)


class Sentinel(Agent):
    """Watches captures and honeypots."""

    role = Role.SENTINEL

    def __init__(self, name: str, *, logs: Sequence[Path] = ()) -> None:
        super().__init__(name)
        self._paths = tuple(logs)
        self._captures = Captures()
        self._honeypots = LiveSource(HONEYPOTS)
        self._unreadable: int | None = None
        """Why a log could not be read last: said once."""
        self._reported = asyncio.Event()
        # Judging runs in a thread; the detection state is used by one at a time.
        self._judging = asyncio.Lock()

    async def started(self) -> None:
        """Begin to watch the honeypots and the logs."""
        self.host.spawn(self._watch(), f"sentinel {self.name}")
        for path in self._paths:
            self.host.spawn(self._follow(path), f"sentinel {self.name} {path.name}")

    async def on_observations(self, batch: Observations, context: Context) -> ObservationsTaken:
        """Take a batch of a capture, alert what it shows, and answer what was taken so far."""
        if batch.source.startswith(DECEPTION):
            raise InvalidInputError(f"{batch.source!r} is no name for a capture", reason="reserved_source")
        now_s = self.host.now_ns() / 1e9
        async with self._judging:
            capture, idle = self._captures.find(context.sender.token, batch, now_s=now_s)
            for one in idle:
                log.warning("capture_abandoned", agent=self.name, source=one.source)
                await self._alert(await asyncio.to_thread(one.close))
            news = await asyncio.to_thread(capture.take, batch)
            taken = capture.taken
        self.host.metrics.count("sentinel.flows", len(batch.flows))
        await self._alert(news)
        return taken

    async def on_task(self, content: Observations | Incident | Assessment, context: Context) -> None:
        """Take what a deception agent saw."""
        if not isinstance(content, Observations):
            return
        if context.sender.role is not Role.DECEPTION:
            raise DeniedError(f"{context.sender} reports no observations", reason="not_a_sensor")
        async with self._judging:
            news = await asyncio.to_thread(self._honeypots.take, context.sender.name, content)
        self.host.metrics.count("sentinel.flows", len(content.flows))
        self._reported.set()
        await self._alert(news)

    async def _watch(self) -> None:
        """Judge the honeypots' open windows whenever something was reported."""
        clock = asyncio.get_running_loop().time
        while True:
            await self._reported.wait()
            self._reported.clear()
            begun_s = clock()
            async with self._judging:
                news = await asyncio.to_thread(self._honeypots.look, self.host.now_ns() / 1e9)
            look_s = clock() - begun_s
            self.host.metrics.observe_ms("sentinel.look", look_s * 1e3)
            await self._alert(news)
            await asyncio.sleep(max(LOOK_S, look_s / MAX_LOOK_SHARE))

    async def _follow(self, path: Path) -> None:
        """Read a log as it grows, and judge its open windows; what was told is kept before more is read."""
        clock = asyncio.get_running_loop().time
        followed = await asyncio.to_thread(SentinelLog, path, self.host.state_dir)
        looked_s, read = 0.0, 0
        try:
            while True:
                async with self._judging:
                    news, behind = await asyncio.to_thread(self._read, followed)
                    begun_s = clock()
                    if not behind or begun_s - looked_s >= LOOK_S:
                        news += await asyncio.to_thread(followed.look)
                    looked_s = clock()
                lines = followed.counts["lines"]
                self.host.metrics.count("sentinel.lines", lines - read)
                if news:
                    alerts = [alert.model_dump_json(exclude_none=True) for alert in alerts_of(news)]
                    await asyncio.to_thread(followed.write_down, alerts)
                    await self._alert(news)
                if lines > read or news:
                    await asyncio.to_thread(followed.keep)
                read = lines
                pause_s = (looked_s - begun_s) / MAX_LOOK_SHARE
                await asyncio.sleep(pause_s if behind else max(LOOK_S, pause_s))
        finally:
            followed.close()

    def _read(self, followed: SentinelLog) -> tuple[list[Finding], bool]:
        try:
            return followed.read()
        except OSError as error:
            if self._unreadable != error.errno:
                log.warning("log_unreadable", agent=self.name, detail=str(error)[:200])
            self._unreadable = error.errno
            return [], False

    async def _alert(self, findings: list[Finding]) -> None:
        """Alert everyone; together, so that one signature covers them."""
        self.host.metrics.count("sentinel.findings", len(findings))
        await asyncio.gather(*(self._send(alert) for alert in alerts_of(findings)))

    async def _send(self, alert: ThreatAlert) -> None:
        async def attempt() -> object:
            return await self.send(THREAT_ALERT, alert, audience="all", priority=Priority.HIGH)

        try:
            await patiently(attempt, within_s=SEND_WITHIN_S)
        except TocsinError as error:
            self.host.metrics.count("sentinel.alerts_lost")
            log.exception("alert_lost", agent=self.name, summary=alert.summary, reason=error.reason)
