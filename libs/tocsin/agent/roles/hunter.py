"""The hunter: from alerts to incidents.

Every hunter gets every alert, and each case has one owner among them: the hunters' names are hashed with the
case (rendezvous), so that all agree without asking. The owner gathers a case's alerts until it is complete, and hands
the incident to one analyst, chosen in the same way.

What captures and honeypots show is gathered for a burst (:mod:`tocsin.agent.roles.correlation`). What sentinels find in
logs that they follow is remembered for days, over hosts and logs (:mod:`tocsin.agent.roles.casebook`), and survives a
restart, with the incidents that were not handed over yet. Its incidents are in ``<name>.incidents.jsonl`` in the host's
state folder, whether or not an analyst is there.

While hunters disagree on who is enrolled, a case can have two owners, whose incidents have the same id, or
none: an alert is lost to the case if its owner dies while it gathers. Not so where the sentinel is on the same host:
the hunter then reads its alert file when it starts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from tocsin.agent.agent import Agent, rendezvous
from tocsin.agent.roles.casebook import Casebook, is_followed
from tocsin.agent.roles.correlation import Correlation, case_of
from tocsin.agent.roles.patience import patiently
from tocsin.bus import Context
from tocsin.contracts.catalogue import COORDINATION
from tocsin.contracts.errors import TocsinError, UnavailableError
from tocsin.contracts.identifiers import Priority, Role
from tocsin.contracts.observations import Incident
from tocsin.contracts.routing import Coordination, ThreatAlert
from tocsin.telemetry import get_logger

HAND_OVER_WITHIN_S = 15.0
"""How long an incident is tried to be handed over: time for a broker's restart."""
LATER_S = 60.0
"""How long the casebook's incidents wait for another try when no analyst took them."""

log = get_logger(__name__)


class Hunter(Agent):
    """Joins the alerts of one case."""

    role = Role.HUNTER

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._correlation = Correlation()
        self._gathered = asyncio.Event()
        self._casebook: Casebook | None = None
        self._writing = asyncio.Lock()

    async def started(self) -> None:
        """Open the casebook, and begin to watch for cases that are complete."""
        self._casebook = await asyncio.to_thread(Casebook.open, self.host.state_dir, self.name)
        self._gathered.set()
        self.host.spawn(self._watch(), f"hunter {self.name}")
        self.host.spawn(self._hand_over_again(), f"incidents of {self.name}")

    async def stopping(self) -> None:
        """Write down what is gathered."""
        await self._write(now_s=None)

    async def on_alert(self, alert: ThreatAlert, context: Context) -> None:
        """Gather an alert that has a finding, if its case is this hunter's."""
        if alert.finding is None:
            return
        if self._casebook is not None:
            self._casebook.add(alert.finding, context.id, now_s=time.monotonic())
            self._gathered.set()
        if is_followed(alert.finding) or not self._owns(case_of(alert.finding)):
            return
        early = self._correlation.add(alert.finding, context.id, now_s=time.monotonic())
        self._gathered.set()
        self._hand_over(early)

    def _owns(self, case: str) -> bool:
        # Itself too, whether or not the roster knows it yet: better two owners than none.
        return rendezvous(case, sorted({self.name, *self.host.peers(Role.HUNTER)})) == self.name

    async def _watch(self) -> None:
        """Complete cases as they fall due."""
        while True:
            await self._gathered.wait()
            dues = [self._correlation.due_s(), self._casebook.due_s() if self._casebook else None]
            due = [one for one in dues if one is not None]
            if not due:
                self._gathered.clear()
                continue
            await asyncio.sleep(max(0.0, min(due) - time.monotonic()))
            self._hand_over(self._correlation.complete(time.monotonic()))
            try:
                await self._write(now_s=time.monotonic())
            except TocsinError as error:
                self.host.metrics.count(f"hunter.disk_failures.{error.reason}")
                log.exception("casebook_stuck", agent=self.name, reason=error.reason)
                await asyncio.sleep(HAND_OVER_WITHIN_S)

    async def _write(self, *, now_s: float | None) -> None:
        """Have the casebook write what is complete, and hand it over."""
        if self._casebook is None:
            return
        async with self._writing:
            incidents = await asyncio.to_thread(self._casebook.complete, now_s, self._owns)
        self._hand_over(incidents)

    def _hand_over(self, incidents: Iterable[Incident]) -> None:
        for incident in incidents:
            self.host.spawn(self._to_an_analyst(incident), f"incident of {self.name}")

    async def _hand_over_again(self) -> None:
        """Hand over what no analyst has taken, of this run and of earlier ones."""
        while self._casebook is not None:
            for incident in self._casebook.pending():
                await self._to_an_analyst(incident)
            await asyncio.sleep(LATER_S)

    async def _to_an_analyst(self, incident: Incident) -> None:
        async def attempt() -> None:
            analysts = self.host.peers(Role.ANALYST)
            if not analysts:
                raise UnavailableError("no analyst is enrolled", reason="no_analyst")
            await self.send(
                COORDINATION,
                Coordination(content=incident),
                audience=f"agent.{rendezvous(incident.incident, analysts)}",
                priority=Priority.HIGH,
            )

        about = {"agent": self.name, "incident": incident.incident.hex(), "subject": incident.primary.subject}
        try:
            await patiently(attempt, within_s=HAND_OVER_WITHIN_S)
        except TocsinError as error:
            self.host.metrics.count("hunter.incidents_lost")
            log.exception("incident_lost", reason=error.reason, **about)
            return
        self.host.metrics.count("hunter.incidents")
        log.info("incident_made", findings=1 + len(incident.related), **about)
        if self._casebook is not None:
            async with self._writing:
                await asyncio.to_thread(self._casebook.handed, incident.incident)
