"""A worker that is a whole agent host, as the system's own hosts are, with agents that note every alert they get.

One of the hosts carries the admin, whose alerts are begun when they are due, whatever became of those before.
"""

from __future__ import annotations

import asyncio
import sys
import time
from functools import partial
from typing import Any, Literal

import uvloop
from _alerts import Heard, SentAlert
from _traffic import Schedule, Sending, send_on_time
from _worker import PROGRESS_S, Said, Start, hear, say
from pydantic import BaseModel, ConfigDict

from tocsin.agent import Agent, AgentHost, Context, HostSettings
from tocsin.contracts.catalogue import THREAT_ALERT
from tocsin.contracts.errors import TocsinError
from tocsin.contracts.identifiers import Priority, Role, Severity
from tocsin.contracts.routing import ThreatAlert
from tocsin.crypto import select_backend
from tocsin.telemetry import Metrics, configure_logging, set_aside

DIGITS = 12


class ListeningPlan(BaseModel):
    """What a host is told."""

    model_config = ConfigDict(frozen=True)

    settings: dict[str, Any]
    """Of the agent host (:class:`HostSettings`), as JSON has them."""
    sender: str
    """The admin's name; empty on a host that does not carry it."""
    schedule: Schedule


class Listener(Agent):
    """Notes each alert that it is handed."""

    def __init__(self, name: str, *, index: int, arrivals: list[tuple[int, int, int]]) -> None:
        super().__init__(name)
        self._index = index
        self._arrivals = arrivals

    async def on_alert(self, alert: ThreatAlert, _: Context) -> None:
        """Note it, now."""
        if alert.severity is Severity.CRITICAL:
            self._arrivals.append((int(alert.summary[:DIGITS]), self._index, time.monotonic_ns()))


class Crowd:
    """One host's agents, and what they have heard and sent."""

    def __init__(self, plan: ListeningPlan) -> None:
        self._plan = plan
        self.settings = HostSettings(**plan.settings)
        self.names = tuple(agent.name for agent in self.settings.carried())
        self.metrics = Metrics()
        self.arrivals: list[tuple[int, int, int]] = []
        self.sent: list[SentAlert] = []
        self.host = AgentHost(self.settings, self._make, self.metrics)

    def _make(self, role: Role, name: str) -> Agent:
        listener: type[Listener] = type(f"{role.value.title()}Listener", (Listener,), {"role": role})
        return listener(name, index=self.names.index(name), arrivals=self.arrivals)

    async def send(self, number: int) -> None:
        """Send one alert to all, and note what its sender was told."""
        begun_ns = time.monotonic_ns()
        note = partial(SentAlert, number=number, begun_ns=begun_ns)
        alert = ThreatAlert(severity=Severity.CRITICAL, summary=f"{number:0{DIGITS}d} measured")
        try:
            sent = await self.host.agents[self._plan.sender].send(
                THREAT_ALERT, alert, audience="all", priority=Priority.CRITICAL
            )
        except TocsinError as error:
            self.sent.append(note(took_ms=_since_ms(begun_ns), failure=error.reason))
            raise
        self.sent.append(note(took_ms=_since_ms(begun_ns), leaf_hex=sent.leaf.hex()))

    def counters(self) -> dict[str, int]:
        """Return the host's counters, and what the backend itself has counted."""
        counted = select_backend(self.settings.signature_backend).counters
        return {
            **self.metrics.statistics().counters,
            "full_signatures": counted.signatures,
            "full_verifications": counted.verifications,
        }


async def listen(plan: ListeningPlan) -> None:
    """Carry the agents until the program says that it is over."""
    configure_logging("listening", level="warning")
    crowd = Crowd(plan)
    async with crowd.host:
        say(Said(state="ready"))
        start_ns = Start.model_validate_json(await hear()).start_ns
        before = crowd.counters()
        share = range(plan.schedule.total if plan.sender else 0)
        sending = asyncio.create_task(send_on_time(plan.schedule, share, start_ns, crowd.send, Sending()))
        finish = asyncio.create_task(hear())
        while not finish.done():
            await asyncio.wait({finish}, timeout=PROGRESS_S)
            if sending.done():
                sending.result()
            state: Literal["sent", "running"] = "sent" if sending.done() else "running"
            gone = sum(not one.failure for one in crowd.sent)
            say(Said(state=state, received=len(crowd.arrivals), sent=gone))
        finish.result()
        counters = {name: count - before.get(name, 0) for name, count in crowd.counters().items()}
        heard = Heard(agents=crowd.names, arrivals=crowd.arrivals, sent=crowd.sent, counters=counters)
        say(Said(state="done", heard=heard))


def _since_ms(begun_ns: int) -> float:
    return (time.monotonic_ns() - begun_ns) / 1e6


if __name__ == "__main__":
    set_aside()  # as a host does
    uvloop.run(listen(ListeningPlan.model_validate_json(sys.stdin.readline())))
