"""The sentinel: from observations to alerts.

Logs of this machine it follows by itself, for ever (:mod:`tocsin.agent.roles.logwatch`): what it finds in them is
first written into ``<name>.alerts.jsonl`` in the host's state folder, and then alerted to all agents. That file and the
states beside it survive a crash at any moment: no line is lost, none is alerted twice. To the other agents an alert is
sent at least once: killed between sending it and writing that down, the sentinel sends it again, with the same finding.

Observations of a capture come by request (OBSERVE) from whoever reads it; those of honeypots come as routed
work from deception agents, and from nobody else. What the detection finds is alerted to all agents, once for
each kind and subject, and again when it has become clearly stronger (:mod:`tocsin.agent.roles.alerting`).

The honeypots' windows are judged while they are open, so that an attack is alerted while it goes on: at most
every LOOK_S, and never for more than a tenth of the time. A capture's windows are judged when they close, the
last ones with the final batch.

Captures and honeypots do not survive a restart: their windows are in memory, and a capture must then be read again
from its start.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from tocsin.agent import statefile
from tocsin.agent.agent import Agent
from tocsin.agent.roles.alerting import alerts_of
from tocsin.agent.roles.linefile import LineFile, hold
from tocsin.agent.roles.logwatch import LogWatch, Progress, alert_id, finding_of
from tocsin.agent.roles.patience import patiently
from tocsin.agent.roles.sensors import DECEPTION, HONEYPOTS
from tocsin.agent.roles.sources import Captures, LiveSource
from tocsin.agent.roles.tail import GRACE_S, POLL_S
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

MAX_UNSENT = 1024
"""Findings of logs that wait to be alerted, while no router is there; beyond, the oldest stays in the file alone."""
DISK_PAUSE_S = 5.0
"""How long a log is left alone after the disk failed: the log is the buffer."""

log = get_logger(__name__)


class Sentinel(Agent):
    """Watches logs, captures and honeypots.

    Args:
        name: of the agent.
        logs: files to follow: Suricata EVE, Zeek logs, syslog. They need not exist yet.
        from_end: the first time, leave out what they hold already.
        grace_s: how long a rotated log must be quiet before the next one is begun.
    """

    role = Role.SENTINEL

    def __init__(
        self, name: str, *, logs: Sequence[Path] = (), from_end: bool = False, grace_s: float = GRACE_S
    ) -> None:
        super().__init__(name)
        self._logs = tuple(logs)
        self._from_end = from_end
        self._grace_s = grace_s
        self._watches: list[tuple[LogWatch, asyncio.Lock]] = []
        self._alerts: LineFile | None = None
        self._lock: int | None = None
        self._unsent: deque[Finding] = deque(maxlen=MAX_UNSENT)
        self._found = asyncio.Event()
        self._stopping = False
        self._captures = Captures()
        self._honeypots = LiveSource(HONEYPOTS)
        self._reported = asyncio.Event()
        # Judging runs in a thread; the detection state is used by one at a time.
        self._judging = asyncio.Lock()

    async def started(self) -> None:
        """Begin to watch the honeypots and the logs."""
        self.host.spawn(self._watch(), f"sentinel {self.name}")
        if not self._logs:
            return
        await asyncio.to_thread(self._open_logs)
        for watch, lock in self._watches:
            self.host.spawn(self._follow(watch, lock), f"{self.name} follows {watch.path.name}")
        self.host.spawn(self._send_found(), f"alerts of {self.name}")

    async def stopping(self) -> None:
        """Save how far the logs were read."""
        self._stopping = True
        for watch, lock in self._watches:
            async with lock:
                await asyncio.to_thread(watch.close)
        if self._lock is not None:
            os.close(self._lock)  # lets the next process begin
            self._lock = None

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

    # --- Logs -----------------------------------------------------------------------------------

    def _open_logs(self) -> None:
        """Open the alert file and the logs' states. Blocking.

        Raises:
            UnavailableError: ``lines_failed`` or ``state_failed``.
        """
        folder = self.host.state_dir
        self._lock = hold(folder / self.name / "lock")
        self._alerts = LineFile(folder / f"{self.name}.alerts.jsonl")
        lines = self._alerts.recent()
        said = [finding for line in lines if (finding := finding_of(line)) is not None]
        self._unsent.extend(self._not_sent(said))
        self._found.set()
        for path in self._logs:
            digest = hashlib.sha256(str(path).encode()).hexdigest()[:16]
            watch = LogWatch(
                path,
                folder / self.name / f"{digest}.state",
                self._alerts,
                said=said,
                from_end=self._from_end,
                grace_s=self._grace_s,
            )
            self._watches.append((watch, asyncio.Lock()))

    async def _follow(self, watch: LogWatch, lock: asyncio.Lock) -> None:
        """Read a log for ever."""
        absent = ""
        while True:
            try:
                async with lock:
                    if self._stopping:
                        return
                    progress = await asyncio.to_thread(watch.step, now_s=self.host.now_ns() / 1e9)
            except TocsinError as error:
                self.host.metrics.count(f"sentinel.disk_failures.{error.reason}")
                log.exception("watch_stuck", agent=self.name, source=watch.source, reason=error.reason)
                await asyncio.sleep(DISK_PAUSE_S)
                continue
            if progress.absent != absent:
                absent = progress.absent
                log.warning("log_absent" if absent else "log_there", source=watch.source, why=absent)
            self._count(watch, progress)
            if progress.news:
                self._unsent.extend(progress.news)
                self._found.set()
            if not progress.more:
                await asyncio.sleep(POLL_S)

    def _count(self, watch: LogWatch, progress: Progress) -> None:
        self.host.metrics.count("sentinel.lines", progress.lines)
        self.host.metrics.gauge("sentinel_bad_lines", watch.parser.bad.total())
        for loss in progress.losses:
            self.host.metrics.count(f"sentinel.losses.{loss.kind.value}")
            log.warning("log_loss", source=watch.source, kind=loss.kind.value, octets=loss.octets)

    async def _send_found(self) -> None:
        """Alert what logs showed, in the order of the file; what no router takes waits."""
        while True:
            await self._found.wait()
            self._found.clear()
            while self._unsent:
                findings = list(self._unsent)
                self._unsent.clear()
                if await self._alert(sorted(findings, key=lambda finding: -finding.score)):
                    await asyncio.to_thread(statefile.save, self._sent_file, alert_id(findings[-1]))
                else:
                    self._unsent = deque([*findings, *self._unsent], maxlen=MAX_UNSENT)
                    await asyncio.sleep(SEND_WITHIN_S)

    @property
    def _sent_file(self) -> Path:
        return self.host.state_dir / self.name / "sent"

    def _not_sent(self, said: list[Finding]) -> list[Finding]:
        """Return the findings of the alert file behind the last one that was sent."""
        try:
            last = statefile.load(self._sent_file)
        except InvalidInputError:
            last = None
        places = [place for place, finding in enumerate(said) if alert_id(finding) == last]
        return said[places[-1] + 1 :] if places else said

    async def _alert(self, findings: list[Finding]) -> bool:
        """Alert everyone; together, so that one signature covers them. Return whether all could be sent."""
        self.host.metrics.count("sentinel.findings", len(findings))
        return all(await asyncio.gather(*(self._send(alert) for alert in alerts_of(findings))))

    async def _send(self, alert: ThreatAlert) -> bool:
        async def attempt() -> object:
            return await self.send(THREAT_ALERT, alert, audience="all", priority=Priority.HIGH)

        try:
            await patiently(attempt, within_s=SEND_WITHIN_S)
        except TocsinError as error:
            self.host.metrics.count("sentinel.alerts_lost")
            log.exception("alert_lost", agent=self.name, summary=alert.summary, reason=error.reason)
            return False
        return True
