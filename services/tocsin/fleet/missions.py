"""The shell of missions: requests and reports in, records and orders out.

What a mission is about to do is kept before anybody is told (bucket ``missions``, by compare-and-set); what hosts say
is in stream MISSIONS before their hosts forget it. So a fleet that is killed goes on where it was: it reads the running
missions, then what the hosts have said since, and tells everybody once more what they have.

One instance runs a mission: the one that started last takes all that run, and the others see it and let go.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import cast

from tocsin.bus import Bus, Context, Sent
from tocsin.bus.envelope import encode_body
from tocsin.contracts.catalogue import (
    EVENT_MISSION,
    MISSION_ORDER,
    MISSION_ORDER_TYPE,
    MISSION_REPORT,
    MISSIONS,
    PROFILES,
)
from tocsin.contracts.errors import (
    ConflictError,
    DeniedError,
    ExhaustedError,
    InvalidInputError,
    TocsinError,
    UnavailableError,
    UntrustedError,
)
from tocsin.contracts.identifiers import Priority
from tocsin.contracts.missions import (
    MAX_FAILED_LINKS,
    HostPart,
    HostProfile,
    LinkReport,
    MissionAccepted,
    MissionEvent,
    MissionList,
    MissionListRequest,
    MissionNews,
    MissionOrder,
    MissionRecord,
    MissionReport,
    MissionRequest,
    MissionState,
    MissionSummary,
    MissionView,
)
from tocsin.fleet.assignment import Candidate, Spare
from tocsin.fleet.mission import NS_PER_S, Mission, Verdict, summary_of
from tocsin.fleet.planning import plan
from tocsin.fleet.profiles import Profiles
from tocsin.telemetry import get_logger, set_aside

MAX_RUNNING = 64
MAX_KEPT = 1024
"""Missions that have ended and are listed; beyond, the oldest are forgotten here, and stay in the bucket."""
KEEP_EVERY_S = 0.5
"""How often what only a look at the stream would tell is written down."""
RETRY_S = 0.25
MAX_CONCERNS = 64
RESUME_GRACE_NS = 5 * NS_PER_S
"""After a restart of fleet hosts have so much longer to confirm: the broker may have restarted, too."""
BEFORE_NS = 60 * NS_PER_S
"""A restarted fleet reads the stream from so long before a mission began: the broker has a clock of its own."""

log = get_logger(__name__)


@dataclass(slots=True)
class _Running:
    mission: Mission
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a record is written and its order sent: orders leave in the order of their records."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    coordinated: bool = False
    lost_ns: int = 0
    """When fleet learnt of a loss that is not recovered from yet; 0: there is none."""
    dropped: bool = False
    links: dict[str, LinkReport] = field(default_factory=dict)
    """What each host has said last of the channels that its agents begin."""


class MissionKeeper:
    """Runs the missions of one fleet instance."""

    def __init__(self, bus: Bus, profiles: Profiles) -> None:
        self._bus = bus
        self._me = bus.id.token
        self.profiles = profiles
        self._records = bus.records(MISSIONS)
        self._running: dict[str, _Running] = {}
        self._starting: set[str] = set()
        self._known: OrderedDict[str, MissionSummary] = OrderedDict()
        self._candidates: dict[str, Candidate] | None = None

    async def prepare(self) -> None:
        """Learn what agents can do and which missions there are."""
        await self._bus.records(PROFILES).follow(self._on_profile)
        await self._refresh()

    async def started(self) -> None:
        """Go on with the missions that run."""
        self._bus.spawn(_warm_up(), "warming up")
        for name in [one.mission for one in self._known.values() if one.state is MissionState.RUNNING]:
            self._bus.spawn(self._resume(name), f"resuming {name}")

    # --- Questions ----------------------------------------------------------------------------

    async def coordinate(self, request: MissionRequest, context: Context) -> MissionAccepted:
        """Plan a mission, keep it, and tell everybody.

        Raises:
            InvalidInputError: as :func:`tocsin.fleet.planning.plan`, or ``too_large``: nothing was started.
            ConflictError: ``mission_exists``.
            ExhaustedError: ``missions_full``.
        """
        name = request.mission or f"m-{context.leaf.hex()[:12]}"
        if name in self._known or name in self._starting:
            raise ConflictError(f"there is a mission {name} already", reason="mission_exists")
        if len(self._running) + len(self._starting) >= MAX_RUNNING:
            raise ExhaustedError(f"{MAX_RUNNING} missions run already", reason="missions_full")
        self._starting.add(name)
        try:
            now_ns = time.time_ns()
            candidates = self.profiles.candidates(self._load(), now_ns=now_ns)
            begun = time.perf_counter()
            record = await asyncio.to_thread(
                plan,
                request,
                list(candidates.values()),
                mission=name,
                by=context.sender.token,
                runner=self._me,
                proposed_ns=context.content.issued_at,
                now_ns=now_ns,
            )
            self._bus.metrics.observe_ms("mission_plan", (time.perf_counter() - begun) * 1e3)
            mission = Mission(record)
            mission.begin()
            # Made while the record is written, sent once it is.
            _, order = await asyncio.gather(self._create(record), self._order(mission))
        finally:
            self._starting.discard(name)
        self._learn(record)
        running = self._running[name] = _Running(mission)
        try:
            await self._send(mission, order)
        except UnavailableError as error:
            # It is kept, and what is not accepted is said again.
            self._bus.metrics.count(f"mission_failures.{error.reason}")
        running.task = self._bus.spawn(self._run(running), f"mission {name}")
        self._bus.metrics.count("missions_started")
        self._announce(running.mission, MissionNews.STARTED)
        return MissionAccepted(mission=name)

    async def view(self, name: str) -> MissionView:
        """Return all of one mission.

        Raises:
            InvalidInputError: ``no_such_mission``.
        """
        running = self._running.get(name)
        if running is not None:
            mission = running.mission
            return MissionView(
                record=mission.record(now_ns=time.time_ns()),
                progress=mission.progress(),
                links=_all_links(running.links.values()) if mission.channels else None,
            )
        record = await self._records.get(name)
        if record is None:
            raise InvalidInputError(f"there is no mission {name}", reason="no_such_mission")
        return MissionView(record=record, progress={})

    async def listing(self, asked: MissionListRequest) -> MissionList:
        """Return missions, the youngest first."""
        await self._refresh()
        now_ns = time.time_ns()
        current = {name: summary_of(one.mission.record(now_ns=now_ns)) for name, one in self._running.items()}
        found = [one for one in ({**self._known, **current}).values() if asked.state in {None, one.state}]
        found.sort(key=lambda one: (-one.proposed_ns, one.mission))
        return MissionList(missions=tuple(found[: asked.limit]), total=len(found))

    # --- What happens -------------------------------------------------------------------------

    def on_report(self, report: MissionReport, context: Context) -> None:
        """Take a host's reports. Those that do not count are counted as what they are, and audited.

        Raises:
            DeniedError: ``not_assigned``, after those beside it have been counted.
        """
        running = self._running.get(report.mission)
        if running is None:
            self._bus.metrics.count("mission_reports_of_others", len(report.reports))
            return
        verdicts = self._count(running, report, context.sender.name, context.now_ns)
        running.wake.set()
        if Verdict.NOT_ASSIGNED in verdicts:
            raise DeniedError(
                f"{context.sender} reports on {report.mission} what it was not given", reason="not_assigned"
            )

    async def agents_lost(self, names: tuple[str, ...]) -> None:
        """Give what these agents have in hand to others, at once."""
        now_ns = time.time_ns()
        self._candidates = None
        gone = frozenset(names)
        spare = Spare(lambda: {n: c for n, c in self._fit().items() if n not in gone})
        await asyncio.gather(
            *(
                self._lost(running, names, spare, now_ns)
                for running in list(self._running.values())
                if not gone.isdisjoint(running.mission.agents())
            )
        )

    def _on_profile(self, key: str, profile: HostProfile) -> None:
        """Learn what a host's agents can do; a host that has restarted is asked whether it has what it had."""
        restarted = self.profiles.learn(key, profile)
        for running in self._running.values() if restarted else ():
            if running.mission.ask_again(now_ns=time.time_ns(), agents=restarted):
                running.wake.set()

    # --- Inside -------------------------------------------------------------------------------

    async def _lost(self, running: _Running, names: Iterable[str], spare: Spare, now_ns: int) -> None:
        if running.mission.lost(names, spare, now_ns=now_ns):
            running.lost_ns = running.lost_ns or now_ns
            try:
                await self._apply(running)
            except TocsinError as error:
                # The mission's own task tries again, or lets go of it.
                self._bus.metrics.count(f"mission_failures.{error.reason}")
            running.wake.set()

    def _count(self, running: _Running, report: MissionReport, host: str, now_ns: int) -> set[Verdict]:
        mission = running.mission
        if report.links is not None and self.profiles.knows(host):
            running.links[host] = report.links
        spare = Spare(self._fit)
        verdicts = [
            mission.report(one, host, self.profiles.host_of, spare, now_ns=now_ns) for one in report.reports
        ]
        for verdict in set(verdicts):
            self._bus.metrics.count(f"mission_reports.{verdict.value}", verdicts.count(verdict))
        if mission.coordinated_ns and not running.coordinated:
            running.coordinated = True
            took_ms = max(0.0, (mission.coordinated_ns - mission.proposed_ns) / 1e6)
            self._bus.metrics.observe_ms("coordination", took_ms)
            self._announce(mission, MissionNews.COORDINATED, ms=took_ms)
        if running.lost_ns and not mission.unaccepted:
            took_ms = (now_ns - running.lost_ns) / 1e6
            running.lost_ns = 0
            self._bus.metrics.observe_ms("recovery", took_ms)
            self._announce(mission, MissionNews.RECOVERED, ms=took_ms)
        return set(verdicts)

    async def _run(self, running: _Running) -> None:
        """Keep one mission going until it has ended."""
        mission = running.mission
        kept_s = time.monotonic()
        dirty = False
        while not running.dropped:
            try:
                mission.advance(Spare(self._fit), now_ns=time.time_ns())
                if mission.ended:
                    await self._end(running)
                    return
                changes = mission.changes
                if changes.kept or changes.order or changes.recalls:
                    await self._apply(running)
                elif dirty and time.monotonic() - kept_s >= KEEP_EVERY_S:
                    await self._keep(running)
                    kept_s, dirty = time.monotonic(), False
            except ConflictError:
                self._drop(running)
                return
            except TocsinError as error:
                # The broker is away, or slow: what has changed is still to be said.
                self._bus.metrics.count(f"mission_failures.{error.reason}")
                await asyncio.sleep(RETRY_S)
                continue
            if running.wake.is_set():
                dirty = True
            running.wake.clear()
            pause_s = max(0.0, (mission.next_ns() - time.time_ns()) / NS_PER_S)
            self._candidates = None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(pause_s, KEEP_EVERY_S) if dirty else pause_s):
                    await running.wake.wait()
                dirty = True

    async def _apply(self, running: _Running) -> None:
        """Keep what has changed, then tell the hosts that it concerns."""
        async with running.lock:
            mission = running.mission
            moved = mission.changes.moved[:]
            if mission.changes.kept:
                await self._keep_locked(running)
            await self._tell_locked(running)
        if moved:
            del mission.changes.moved[: len(moved)]
            self._bus.metrics.count("objectives_taken_over", len(moved))
            self._announce(mission, MissionNews.TAKEN_OVER, concerns=moved)

    async def _create(self, record: MissionRecord) -> None:
        def create(held: MissionRecord | None) -> MissionRecord:
            if held is not None:
                raise ConflictError(f"there is a mission {record.mission} already", reason="mission_exists")
            return record

        await self._records.change(record.mission, create)

    async def _keep(self, running: _Running) -> None:
        async with running.lock:
            await self._keep_locked(running)

    async def _keep_locked(self, running: _Running) -> None:
        """Write the record, if this instance still runs the mission.

        Raises:
            ConflictError: ``not_its_runner``: another instance has taken it.
        """
        running.mission.changes.kept = False
        record = running.mission.record(now_ns=time.time_ns())

        def keep(held: MissionRecord | None) -> MissionRecord:
            if held is not None and held.runner != self._me:
                raise _taken(held)
            return record.model_copy(update={"runner": self._me})

        try:
            try:
                await self._records.change(record.mission, keep)
            except InvalidInputError:
                # Results have made it too large: it is kept without their texts, which the stream has.
                self._bus.metrics.count("mission_summaries_dropped")
                record = _without_summaries(record)
                await self._records.change(record.mission, keep)
        except TocsinError:
            running.mission.changes.kept = True
            raise

    async def _tell(self, running: _Running, *, ended: bool = False) -> None:
        async with running.lock:
            await self._tell_locked(running, ended=ended)

    async def _tell_locked(self, running: _Running, *, ended: bool = False) -> None:
        """Send one order for all hosts. One that is lost is sent again: what is not accepted is said again."""
        order = await self._order(running.mission, ended=ended)
        await self._send(running.mission, order)

    async def _order(self, mission: Mission, *, ended: bool = False) -> Sent | None:
        """Make one order for all hosts, of what they have not been told; None if there is nothing to tell.

        Raises:
            InvalidInputError: ``too_large``.
        """
        now_ns = time.time_ns()
        parts = mission.parts(self.profiles.host_of, now_ns=now_ns)
        if not parts and not ended:
            return None
        order = MissionOrder(
            mission=mission.name,
            number=now_ns,
            topology=mission.topology,
            channels=mission.channels,
            parts=tuple(HostPart(host=host, part=encode_body(part)) for host, part in parts.items()),
            until_ns=mission.until_ns,
            ended=ended,
        )
        audience = MISSION_ORDER.audience
        return await self._bus.make(MISSION_ORDER_TYPE, order, audience=audience, priority=Priority.CRITICAL)

    async def _send(self, mission: Mission, order: Sent | None) -> None:
        if order is not None:
            await self._bus.send(MISSION_ORDER.at(mission=mission.name), order)

    async def _end(self, running: _Running) -> None:
        mission = running.mission
        await self._keep(running)
        self._learn(mission.record(now_ns=time.time_ns()))
        self._running.pop(mission.name, None)
        await self._tell(running, ended=True)
        self._bus.metrics.count(f"missions_ended.{mission.state.value}")
        gone = mission.incomplete
        text = f"not reached: {', '.join(gone[:8])}{' and more' if len(gone) > 8 else ''}" if gone else ""
        log.info("mission_ended", mission=mission.name, state=mission.state.value, incomplete=len(gone))
        self._announce(mission, MissionNews.ENDED, concerns=gone, text=text)

    def _drop(self, running: _Running) -> None:
        """Let go of a mission that another instance runs."""
        running.dropped = True
        self._running.pop(running.mission.name, None)
        self._bus.metrics.count("missions_taken_by_another")
        log.warning("mission_taken_by_another", mission=running.mission.name)

    async def _resume(self, name: str) -> None:
        """Take a mission that runs: this instance's own, or one of an instance that is no more."""

        def take(held: MissionRecord | None) -> MissionRecord | None:
            if held is None or held.state is not MissionState.RUNNING:
                return None
            return held.model_copy(update={"runner": self._me})

        while True:
            try:
                record = await self._records.change(name, take)
                if record is None:
                    return
                running = _Running(Mission(record), coordinated=record.coordinated_ns > 0)
                await self._read_reports(running)
                break
            except UnavailableError as error:
                self._bus.metrics.count(f"mission_failures.{error.reason}")
                await asyncio.sleep(RETRY_S)
        self._running[name] = running
        # What came by ear while the stream was read is in the stream by now.
        with contextlib.suppress(UnavailableError):
            await self._read_reports(running)
        # Hosts may have died meanwhile, unheard: what is not confirmed goes to others.
        running.mission.ask_again(now_ns=time.time_ns(), grace_ns=RESUME_GRACE_NS)
        running.task = asyncio.current_task()
        self._bus.metrics.count("missions_resumed")
        self._announce(running.mission, MissionNews.RESUMED)
        await self._lost_meanwhile(running)
        await self._run(running)

    async def _read_reports(self, running: _Running) -> None:
        start_ns = running.mission.proposed_ns - BEFORE_NS
        reader = self._bus.reader(MISSION_REPORT, start_ns=start_ns)
        for stored in await reader.read():
            report = cast("MissionReport", stored.body)
            if report.mission == running.mission.name:
                self._count(running, report, stored.context.sender.name, time.time_ns())

    async def _lost_meanwhile(self, running: _Running) -> None:
        """Give to others what unfit agents have in hand, as far as they are known: a fresh fleet learns of the rest."""
        unfit = tuple(name for name in running.mission.agents() if self.profiles.is_unfit(name))
        if unfit:
            await self._lost(running, unfit, Spare(self._fit), time.time_ns())

    async def _refresh(self) -> None:
        """Read the missions that another instance runs, or has run."""
        for name in sorted(await self._records.keys()):
            known = self._known.get(name)
            if name in self._running or (known is not None and known.state is not MissionState.RUNNING):
                continue
            try:
                record = await self._records.get(name)
            except UntrustedError as error:
                self._bus.metrics.count(f"mission_records_refused.{error.reason}")
                continue
            if record is not None and record.mission == name:
                self._learn(record)

    def _learn(self, record: MissionRecord) -> None:
        self._known[record.mission] = summary_of(record)
        while len(self._known) > MAX_KEPT:
            oldest = next((n for n in self._known if n not in self._running), None)
            if oldest is None:
                return
            del self._known[oldest]

    def _load(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for running in self._running.values():
            for name, units in running.mission.load().items():
                found[name] = found.get(name, 0.0) + units
        return found

    def _fit(self) -> dict[str, Candidate]:
        """Return who is fit now; kept until something may have changed it."""
        if self._candidates is None:
            self._candidates = self.profiles.candidates(self._load(), now_ns=time.time_ns())
            asyncio.get_running_loop().call_soon(partial(setattr, self, "_candidates", None))
        return self._candidates

    def _announce(
        self,
        mission: Mission,
        news: MissionNews,
        *,
        ms: float | None = None,
        concerns: Iterable[str] = (),
        text: str = "",
    ) -> None:
        event = MissionEvent(
            mission=mission.name,
            news=news,
            state=mission.state,
            objectives=len(mission),
            done=mission.done,
            open=mission.open,
            concerns=tuple(concerns)[:MAX_CONCERNS],
            ms=ms,
            text=text[:512],
        )
        self._bus.spawn(self._publish(event), "mission event")

    async def _publish(self, event: MissionEvent) -> None:
        try:
            await self._bus.event(EVENT_MISSION, event)
        except TocsinError as error:
            self._bus.metrics.count(f"unsent.{error.reason}")


def _all_links(said: Iterable[LinkReport]) -> LinkReport:
    found = list(said)
    failed = tuple(one for links in found for one in links.failed)
    return LinkReport(
        wanted=sum(links.wanted for links in found),
        open=sum(links.open for links in found),
        failed=failed[:MAX_FAILED_LINKS],
    )


def _taken(held: MissionRecord) -> ConflictError:
    return ConflictError(f"{held.runner} runs {held.mission}", reason="not_its_runner")


def _without_summaries(record: MissionRecord) -> MissionRecord:
    bare = tuple(one.model_copy(update={"summary": ""}) for one in record.objectives)
    return record.model_copy(update={"objectives": bare})


async def _warm_up() -> None:
    """Import what plans missions before the first one waits for it."""
    await asyncio.to_thread(_import_libraries)
    # Large, and here to stay: looked through for garbage again and again it would cost missions tens of milliseconds.
    set_aside()


def _import_libraries() -> None:
    import networkx as nx  # noqa: PLC0415 - only what plans missions needs it
    import scipy.optimize  # noqa: PLC0415

    del nx, scipy
