"""The canary: things that nobody has a reason to touch.

A TCP port on loopback, and token files (:mod:`tocsin.agent.roles.tokenfiles`). Whoever connects to the port is named in
a HIGH alert, with a finding that can be assessed; if a file is opened, read, changed, moved or removed, a HIGH alert
says so within a second and can name nobody: neither inotify nor a file's times tell who it was. The port is announced
(event ``agent.sensor``) as ``canary``: whoever makes ordinary traffic leaves it alone.

A touch is reported as kind SCAN (T1046 or T1595), for nothing else is known of it than that a port was tried.
Its score is TOUCHED: no ordinary client exists; what remains is a scanner that was ordered. One alert for
each address in QUIET_S; further touches are counted (``canary.touches``).

Of a file, one burst of touches is one alert, and a second one if a look is followed by a change. A file that was
changed, moved or removed is put out again with the same token; what was there instead is gone. A file that was touched
while the canary was away is said when it is back, if it was changed. Backups, indexers and virus scanners touch files,
too: keep the token files out of their way. See :mod:`tocsin.agent.roles.touches` for what is not noticed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from tocsin.agent.agent import Agent
from tocsin.agent.roles.dialogues import Turn
from tocsin.agent.roles.honeypot import Honeypot, Visit, flow_of
from tocsin.agent.roles.memory import Memory
from tocsin.agent.roles.patience import patiently
from tocsin.agent.roles.sensors import DECEPTION
from tocsin.agent.roles.tokenfiles import TokenFile, place, read_record, write_record
from tocsin.agent.roles.touches import LOOKED, Bursts, InotifyWatch, PollingWatch, Touch, TouchWatch
from tocsin.analysis import techniques
from tocsin.analysis.hosts import is_internal
from tocsin.analysis.windows import WINDOW_S, Window, features_of
from tocsin.contracts.catalogue import EVENT_SENSOR, THREAT_ALERT
from tocsin.contracts.errors import InvalidInputError, TocsinError, UnavailableError
from tocsin.contracts.identifiers import Priority, Role, Severity
from tocsin.contracts.observations import Finding, FindingKind, SensorReady
from tocsin.contracts.routing import ThreatAlert
from tocsin.telemetry import get_logger

IMITATES = "canary"
TOUCHED = 0.9
"""Score of a touch, on the detectors' scale; a scan of 17 ports that all refuse scores as much."""
QUIET_S = 600.0
MAX_ADDRESSES = 1024
SETTLE_S = 0.2
"""What is done to a file within so long after the first touch is told with it."""
REVIVE_S = 10.0
MAX_FILES = 64
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
    """Watches what must not be touched.

    Args:
        address: Where the port is.
        files: Where token files are put beside the one in the state folder; ``{name}`` is the canary's name.
        watch: How they are watched: ``inotify``, ``polling``, or ``auto``: inotify where it is to be had.
    """

    role = Role.CANARY

    def __init__(
        self, name: str, *, address: str = "127.0.0.1", files: Sequence[Path] = (), watch: str = "auto"
    ) -> None:
        super().__init__(name)
        if len(files) > MAX_FILES:
            raise InvalidInputError(f"{len(files)} token files, at most {MAX_FILES}", reason="bad_option")
        if watch not in {"auto", "inotify", "polling"}:
            raise InvalidInputError(f"watch {watch!r}, not auto, inotify or polling", reason="bad_option")
        self._address = address
        self._socket = Honeypot(
            IMITATES, Silence, self._on_visit, now_s=lambda: self.host.now_ns() / 1e9, max_seconds=1.0
        )
        self._alerted: Memory[str, float] = Memory(MAX_ADDRESSES)
        """When an address was last alerted, seconds since the epoch."""
        self._named = tuple(Path(str(path).replace("{name}", name)).absolute() for path in files)
        self._how = watch
        self._files: dict[Path, TokenFile] = {}
        self._watch: TouchWatch = PollingWatch(self._on_touch)
        self._touched: dict[Path, set[Touch]] = {}
        self._bursts = Bursts()

    async def started(self) -> None:
        """Put out the files and the port.

        Raises:
            UnavailableError: ``no_port``, ``no_file`` or, if it was asked for, ``no_inotify``.
            ConflictError: ``file_exists``: a file of somebody else is where a token file should be.
        """
        changed = await asyncio.to_thread(self._place)
        self._watch = self._watcher()
        self.host.spawn(self._watch.run(), f"canary {self.name}")
        for path in changed:
            self._tell(path, "was changed or removed while nobody watched")
        port = await self._socket.open(self._address)
        ready = SensorReady(agent=self.name, address=self._address, port=port, imitates=IMITATES)
        await self.host.event(self, EVENT_SENSOR, ready)

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

    # --- Files ------------------------------------------------------------------------------------

    def _place(self) -> list[Path]:
        """Put the files out; return those that were touched meanwhile. Blocking."""
        own = (self.host.state_dir / f"{self.name}.canary").absolute()
        record_path = self.host.state_dir / f"{self.name}.tokens.json"
        record = read_record(record_path)
        changed = []
        for path in dict.fromkeys((own, *self._named)):
            self._files[path], touched = place(path, record, ours=path == own)
            if touched:
                changed.append(path)
        write_record(record_path, self._files)
        return changed

    def _watcher(self) -> TouchWatch:
        """Watch all files, by inotify if that is to be had."""
        if self._how != "polling":
            try:
                return self._watching(InotifyWatch(self._on_touch))
            except UnavailableError as error:
                if self._how == "inotify":
                    raise
                log.warning("canary_polls", agent=self.name, reason=error.reason, detail=str(error))
        return self._watching(PollingWatch(self._on_touch))

    def _watching(self, watch: TouchWatch) -> TouchWatch:
        for path in self._files:
            watch.watch(path)
        return watch

    def _on_touch(self, path: Path, touch: Touch) -> None:
        if path in self._touched:
            self._touched[path].add(touch)
            return
        self._touched[path] = {touch}
        self.host.spawn(self._settle(path), f"touch of {self.name}")

    async def _settle(self, path: Path) -> None:
        """Wait for what else is done to a file; then mend it, and say so."""
        await asyncio.sleep(SETTLE_S)
        try:
            if self._touched[path] - LOOKED or isinstance(self._watch, PollingWatch):
                await self._mend(path)
        finally:
            touches = self._touched.pop(path)
        self.host.metrics.count("canary.touches")
        if self._bursts.is_news(path, touches, self.host.now_ns() / 1e9):
            self._tell(path, "was " + ", ".join(touch.value for touch in Touch if touch in touches))

    async def _mend(self, path: Path) -> None:
        """Put a file out again if it was changed, and watch it anew."""
        self._watch.forget(path)
        try:
            if self._touched[path] - LOOKED:
                await asyncio.to_thread(self._files[path].write)
            self._watch.watch(path)
        except TocsinError as error:
            self.host.metrics.count("canary.files_lost")
            log.warning("token_file_lost", agent=self.name, path=str(path), reason=error.reason)
            self.host.spawn(self._revive(path), f"token file of {self.name}")

    async def _revive(self, path: Path) -> None:
        """Try to put out a file again whose folder is gone, until it is back."""
        while True:
            await asyncio.sleep(REVIVE_S)
            try:
                await asyncio.to_thread(self._files[path].write)
                self._watch.watch(path)
            except TocsinError:
                continue
            log.info("token_file_back", agent=self.name, path=str(path))
            return

    def _tell(self, path: Path, what: str) -> None:
        token = self._files[path].token[:8]
        summary = f"The token file of canary {self.name} {what}: {str(path)[-200:]} (token {token})"
        alert = ThreatAlert(severity=Severity.HIGH, summary=summary)
        self.host.spawn(self._alert(alert), f"alert of {self.name}")

    async def _alert(self, alert: ThreatAlert) -> None:
        async def attempt() -> object:
            return await self.send(THREAT_ALERT, alert, audience="all", priority=Priority.HIGH)

        try:
            await patiently(attempt, within_s=SEND_WITHIN_S)
        except TocsinError:
            self.host.metrics.count("canary.alerts_lost")
            log.exception("alert_lost", agent=self.name, summary=alert.summary)
