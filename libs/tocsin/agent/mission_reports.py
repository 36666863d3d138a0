"""Reports on missions, on their way to fleet: what gathers while one envelope is sent goes into the next.

They go into stream MISSIONS, where a fleet that was away finds them. Until the stream has acknowledged an envelope, it
is sent again; fleet knows what it knows. Of one task's words on progress only the last waits.
"""

from __future__ import annotations

import asyncio
import contextlib

from tocsin.bus import Bus
from tocsin.contracts.catalogue import MISSION_REPORT, MISSION_REPORT_TYPE
from tocsin.contracts.errors import TocsinError
from tocsin.contracts.identifiers import Priority
from tocsin.contracts.missions import MAX_OBJECTIVES, LinkReport, MissionReport, ReportKind, TaskReport

MAX_WAITING = 16_384
RETRY_S = 0.2
SEND_TIMEOUT_S = 1.0
GATHER_S = 0.25
"""For how long words on progress wait for more of them; all else goes at once."""


class MissionReports:
    """Sends one host's reports. Use :meth:`run` as a task."""

    def __init__(self, bus: Bus, host: str) -> None:
        self._bus = bus
        self._host = host
        self._waiting: dict[str, list[TaskReport]] = {}
        self._progress: dict[tuple[str, str], TaskReport] = {}
        self._links: dict[str, LinkReport] = {}
        """The last word on each mission's channels."""
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._progress) + sum(map(len, self._waiting.values()))

    def add(self, mission: str, report: TaskReport) -> None:
        """Take a report to be sent."""
        if len(self) >= MAX_WAITING:
            self._bus.metrics.count("mission_reports_dropped")
            if report.kind is ReportKind.PROGRESS:
                return
            self._make_room()
        if report.kind is ReportKind.PROGRESS:
            self._progress[mission, report.objective] = report
        else:
            self._progress.pop((mission, report.objective), None)
            self._waiting.setdefault(mission, []).append(report)
        self._idle.clear()
        self._arrived.set()

    def add_links(self, mission: str, links: LinkReport) -> None:
        """Take word of a mission's channels."""
        self._links[mission] = links
        self._waiting.setdefault(mission, [])
        self._idle.clear()
        self._arrived.set()

    async def flush(self, *, timeout_s: float) -> None:
        """Wait until all have been sent, or the time is over."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            self._bus.metrics.count("mission_reports_dropped", len(self))

    async def sent(self, *, within_s: float) -> None:
        """Wait until nothing waits, for so long at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._idle.wait()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            if not self._waiting:
                await self._gather()
            for (mission, _), report in self._progress.items():
                self._waiting.setdefault(mission, []).append(report)
            self._progress.clear()
            while self._waiting:
                mission = next(iter(self._waiting))
                batch = self._waiting[mission][:MAX_OBJECTIVES]
                links = self._links.get(mission)
                if not await self._send(MissionReport(mission=mission, reports=tuple(batch), links=links)):
                    await asyncio.sleep(RETRY_S)
                    continue
                if self._links.get(mission) is links:
                    self._links.pop(mission, None)
                del self._waiting[mission][: len(batch)]
                if not self._waiting[mission] and mission not in self._links:
                    del self._waiting[mission]
            if not self._progress:
                self._idle.set()

    async def _gather(self) -> None:
        """Wait for more words on progress, unless something else comes."""
        until = asyncio.get_running_loop().time() + GATHER_S
        while not self._waiting:
            try:
                async with asyncio.timeout_at(until):
                    await self._arrived.wait()
            except TimeoutError:
                return
            self._arrived.clear()

    async def _send(self, report: MissionReport) -> bool:
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await self._bus.publish(
                    MISSION_REPORT,
                    MISSION_REPORT_TYPE,
                    report,
                    durable=True,
                    priority=Priority.CRITICAL,
                    at={"host": self._host},
                )
        except (TocsinError, TimeoutError) as error:
            self._bus.metrics.count(f"mission_report_failures.{getattr(error, 'reason', 'timeout')}")
            return False
        return True

    def _make_room(self) -> None:
        if self._progress:
            del self._progress[next(iter(self._progress))]
        else:
            oldest = next(waiting for waiting in self._waiting.values() if waiting)
            del oldest[0]
