"""The specialist: which of the organisation's cryptography a quantum computer breaks, and what is most urgent.

It takes an inventory as its plan says (:mod:`tocsin.agent.roles.plan`): at its start, every ``every_s``, and when
the plan changes. It ranks the endpoints (:mod:`tocsin.analysis.inventory.ranking`), writes the CBOM if asked, and
tells what is news (:mod:`tocsin.agent.roles.exposures`): intelligence to admins and analysts, and one alert to the
admins for each endpoint of level HIGH. All of it is sealed: where an organisation is weak is not for everybody who
can read the broker.

What was told is kept in ``<name>.specialist.json``; it is written after the sending, so that a crash between the
two repeats a message and loses none. What could not be sent is sent after RETRY_S, from the same list: endpoints
are not asked again for that.

Without a plan it takes part in decisions and counts what it gets, no more. It connects to nothing but the endpoints
that the plan names.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from tocsin.agent.agent import Agent
from tocsin.agent.roles import survey
from tocsin.agent.roles.exposures import Told, news_of
from tocsin.agent.roles.patience import patiently
from tocsin.agent.roles.plan import Plan, read_plan
from tocsin.analysis.inventory.judging import Level
from tocsin.analysis.inventory.ranking import Ranked, rank
from tocsin.bus import Context
from tocsin.contracts.analysis import AssessmentMade
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import INTELLIGENCE, THREAT_ALERT
from tocsin.contracts.errors import InvalidInputError, TocsinError
from tocsin.contracts.identifiers import Priority, Role
from tocsin.contracts.routing import ThreatAlert
from tocsin.contracts.subjects import MessageType
from tocsin.crypto.keys import replace_private
from tocsin.telemetry import get_logger

LOOK_S = 1.0
"""How often the plan is looked at for a change."""
RETRY_S = 10.0
"""After which what could not be told is tried again."""
FAILED_S = 60.0
"""After which an inventory that failed is tried again."""
SEND_WITHIN_S = 5.0
TOLD = (Role.ADMIN, Role.ANALYST)
"""Who gets the intelligence: who decides what is replaced, and who assesses."""

log = get_logger(__name__)


class Specialist(Agent):
    """Takes inventories."""

    role = Role.SPECIALIST
    capabilities = ("cryptographic-inventory",)

    def __init__(self, name: str, *, plan: Path | None = None) -> None:
        super().__init__(name)
        self._plan = plan
        self._told = Told()

    async def started(self) -> None:
        """Begin to take inventories, if there is a plan."""
        if self._plan is None:
            log.info("no_plan", agent=self.name)
            return
        self._told = await asyncio.to_thread(self._remember)
        self.host.spawn(self._work(self._plan), f"specialist {self.name}")

    async def on_alert(self, alert: ThreatAlert, context: Context) -> None:  # noqa: ARG002 - the hook's signature
        """Count an alert by its severity."""
        self.host.metrics.count(f"specialist.alerts.{alert.severity.value}")

    async def on_assessment(self, made: AssessmentMade, context: Context) -> None:  # noqa: ARG002 - the hook's signature
        """Count an outcome."""
        self.host.metrics.count("specialist.failures" if made.assessment is None else "specialist.assessments")

    async def take_inventory(self, plan: Plan, folder: Path) -> tuple[Ranked, ...]:
        """Take an inventory; return its ranked list.

        Args:
            plan: Of what.
            folder: To which the plan's paths are relative.

        Raises:
            InvalidInputError: ``bad_endpoint``, ``unknown_format``.
            UnavailableError: ``no_log``, ``no_cyclonedx``, ``unwritable_file``.
        """
        taken = await survey.take(plan.sources(folder), lambda: self.host.now_ns() / 1e9)
        ranked = await asyncio.to_thread(self._rank, taken, plan, folder)
        self.host.metrics.count("specialist.inventories")
        self.host.metrics.gauge("specialist_endpoints.all", len(ranked))
        self.host.metrics.gauge("specialist_endpoints.high", sum(one.level is Level.HIGH for one in ranked))
        self.host.metrics.gauge("specialist_endpoints.incomplete", len(taken.incomplete))
        log.info(
            "inventory_taken",
            agent=self.name,
            endpoints=len(ranked),
            incomplete=len(taken.incomplete),
            bad_lines=sum(one.bad for one in taken.logs.values()),
        )
        return ranked

    def _rank(self, taken: survey.Survey, plan: Plan, folder: Path) -> tuple[Ranked, ...]:
        ranked = rank(taken.inventory, plan.assumptions(self.host.now_ns() / 1e9))
        if plan.cbom is not None:
            # Late, since its library is in an extra.
            from tocsin.analysis.inventory import cbom  # noqa: PLC0415

            replace_private(folder / plan.cbom, cbom.write(taken.inventory, ranked).encode())
        return ranked

    async def _work(self, path: Path) -> None:
        """Take inventories for as long as the host runs; a change of the plan cuts a pause, never an inventory."""
        while True:
            stamp = await asyncio.to_thread(_stamp, path)
            pause_s = FAILED_S
            ranked: tuple[Ranked, ...] = ()
            try:
                plan = await asyncio.to_thread(read_plan, path)
                ranked = await self.take_inventory(plan, path.parent)
                pause_s = plan.every_s
            except TocsinError as error:
                self.host.metrics.count(f"specialist.inventory_failures.{error.reason}")
                log.warning("inventory_failed", agent=self.name, reason=error.reason, detail=str(error))
            await self._until_due(path, stamp, ranked, pause_s)

    async def _until_due(
        self, path: Path, stamp: tuple[int, int] | None, ranked: tuple[Ranked, ...], pause_s: float
    ) -> None:
        """Tell what is news, again where it could not be, until the next inventory is due."""
        clock = asyncio.get_running_loop().time
        until_s = clock() + pause_s
        tell_s: float | None = clock()
        while clock() < until_s and await asyncio.to_thread(_stamp, path) == stamp:
            if tell_s is not None and clock() >= tell_s:
                tell_s = None if await self._told_all(ranked) else clock() + RETRY_S
            await asyncio.sleep(min(LOOK_S, pause_s))

    async def _told_all(self, ranked: tuple[Ranked, ...]) -> bool:
        """Send what is news, remember it, and return whether that was all."""
        news = news_of(ranked, self._told)
        try:
            for alert, about in news.alerts:
                await self._send(THREAT_ALERT, alert, Role.ADMIN, Priority.HIGH)
                await self._keep({}, about)
            for message, digests in news.intelligence:
                for role in TOLD:
                    # An organisation may have no analysts; without an admin there is nobody to tell.
                    if self.host.peers(role) or role is Role.ADMIN:
                        await self._send(INTELLIGENCE, message, role, Priority.NORMAL)
                await self._keep(digests, ())
        except TocsinError as error:
            self.host.metrics.count("specialist.untold")
            log.warning("news_waits", agent=self.name, reason=error.reason, detail=str(error))
            return False
        return not news.waiting

    async def _send(self, kind: MessageType[Message], body: Message, role: Role, priority: Priority) -> None:
        async def attempt() -> object:
            return await self.send(kind, body, audience=f"role.{role.value}", priority=priority, sealed=True)

        await patiently(attempt, within_s=SEND_WITHIN_S)
        self.host.metrics.count(f"specialist.told.{kind.name}")

    async def _keep(self, endpoints: dict[str, str], alerted: tuple[str, ...]) -> None:
        if endpoints or alerted:
            self._told.keep(endpoints, alerted)
            await asyncio.to_thread(replace_private, self._file, self._told.encode())

    @property
    def _file(self) -> Path:
        return self.host.state_dir / f"{self.name}.specialist.json"

    def _remember(self) -> Told:
        """Return what was told before; what cannot be read is told again."""
        try:
            return Told.decode(self._file.read_bytes())
        except FileNotFoundError:
            return Told()
        except (OSError, InvalidInputError) as error:
            log.warning("told_is_lost", agent=self.name, detail=str(error))
            return Told()


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return what changes when a file does."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
