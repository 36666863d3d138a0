"""The hunter: from alerts to incidents.

Every hunter gets every alert, and each case has one owner among them: the hunters' names are hashed with the
case (rendezvous), so that all agree without asking. The owner gathers a case's alerts until it is complete
(:mod:`tocsin.agent.roles.correlation`), and hands the incident to one analyst, chosen in the same way.

While hunters disagree on who is enrolled, a case can have two owners, whose incidents have the same id, or
none: an alert is lost to the case if its owner dies while it gathers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from tocsin.agent.agent import Agent, rendezvous
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

log = get_logger(__name__)


class Hunter(Agent):
    """Joins the alerts of one case."""

    role = Role.HUNTER

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._correlation = Correlation()
        self._gathered = asyncio.Event()

    async def started(self) -> None:
        """Begin to watch for cases that are complete."""
        self.host.spawn(self._watch(), f"hunter {self.name}")

    async def on_alert(self, alert: ThreatAlert, context: Context) -> None:
        """Gather an alert that has a finding, if its case is this hunter's."""
        if alert.finding is None or not self._owns(case_of(alert.finding)):
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
            due_s = self._correlation.due_s()
            if due_s is None:
                self._gathered.clear()
                continue
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            self._hand_over(self._correlation.complete(time.monotonic()))

    def _hand_over(self, incidents: Iterable[Incident]) -> None:
        for incident in incidents:
            self.host.spawn(self._to_an_analyst(incident), f"incident of {self.name}")

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
