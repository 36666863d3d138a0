"""Who lives, from the bus: heartbeats, the broker's word that a connection has ended, and what follows from both.

That a connection has ended proves nothing: its name is whatever the client called itself, and a host whose connection
broke may be back already. So the host itself is asked (``agent.ping``). The broker answers "no responders" within a
millisecond if nobody listens there; only then, or without an answer, are the host's agents gone. All of this together
takes a few milliseconds, so what follows (:attr:`Liveness.on_gone`) is called at once, before anything is published.

Does not protect against who can publish in the installation's account and answers "no responders" in the broker's
place: the agents count as gone until their host's next heartbeat.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from tocsin.bus import Bus
from tocsin.bus.presence import Presence
from tocsin.contracts.catalogue import EVENT_AGENT_STATE, HOST_PING
from tocsin.contracts.errors import TocsinError, UnavailableError
from tocsin.contracts.health import MAX_CHANGES, AgentStates, StateChange
from tocsin.contracts.identifiers import Kind
from tocsin.contracts.operations import PingRequest
from tocsin.fleet.health import HealthBook
from tocsin.fleet.settings import FleetSettings
from tocsin.fleet.states import UNFIT
from tocsin.telemetry import get_logger

SWEEP_S = 1.0
"""How often it is looked who has fallen silent."""
RETRY_S = 5.0
"""Pause before the broker's system account is tried again."""
MAX_CHECKS = 1024
"""Hosts that are asked at once whether they live; those beyond are left to their heartbeats."""

OnGone: TypeAlias = Callable[[tuple[str, ...]], Awaitable[None] | None]
"""Told the agents that do no work any more, all that became so at once."""

log = get_logger(__name__)


class Liveness:
    """Keeps the book of one fleet instance."""

    def __init__(self, bus: Bus, settings: FleetSettings, book: HealthBook) -> None:
        self._bus = bus
        self._settings = settings
        self._book = book
        self._presence: Presence | None = None
        self._checking: dict[str, bool] = {}
        """Hosts that are being asked, and whether their connection has ended once more meanwhile."""
        self.on_gone: list[OnGone] = []
        """Called with the agents that became silent, gone, quarantined or revoked: their work is another's now."""
        self.on_change: list[Callable[[list[StateChange]], None]] = []

    def start(self) -> None:
        """Begin to listen and to look."""
        self._bus.spawn(self._sweep(), "silent agents")
        if self._settings.nats_system_token_file is None:
            log.warning(
                "no_system_account", advice="set TOCSIN_NATS_SYSTEM_TOKEN_FILE; heartbeats alone tell who lives"
            )
        else:
            self._bus.spawn(self._listen(), "presence")

    async def stop(self) -> None:
        """End the second connection."""
        if self._presence is not None:
            await self._presence.close()

    @property
    def listening(self) -> bool:
        """Whether the broker tells this process whose connection has ended."""
        return self._presence is not None and self._presence.listening

    def changed(self, changes: list[StateChange], why: str) -> None:
        """Tell whoever it concerns, in this process first, of agents whose state has changed."""
        if not changes:
            return
        unfit = tuple(one.agent for one in changes if one.after in UNFIT and one.before not in UNFIT)
        if unfit:
            for hook in self.on_gone:
                self._bus.spawn(_call(hook, unfit), "agents gone")
        for told in self.on_change:
            told(changes)
        for one in changes:
            self._bus.metrics.count(f"agent_states.{one.after.value}")
        self._bus.spawn(self._publish(changes, why), "agent states")

    # --- Inside -------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Open the second connection; a broker without a system account is said once."""
        said = False
        while self._presence is None:
            try:
                self._presence = await Presence.open(
                    self._settings,
                    self._bus.metrics,
                    user=self._settings.nats_system_user,
                    password_file=self._settings.nats_system_token_file,  # type: ignore[arg-type]  # start() checks it
                    name=self._bus.id.token,
                    ended=self._ended,
                )
            except TocsinError as error:
                self._bus.metrics.count(f"presence_failures.{error.reason}")
                if not said:
                    log.warning("no_system_account", reason=error.reason, detail=str(error))
                    said = True
                await asyncio.sleep(RETRY_S)

    def _ended(self, process: str) -> None:
        kind, _, host = process.partition(".")
        if kind != Kind.HOST or not self._book.carried_by(host):
            return
        if host in self._checking:
            self._checking[host] = True
        elif len(self._checking) < MAX_CHECKS:
            self._checking[host] = False
            self._bus.spawn(self._check(host), f"check {host}")
        else:
            self._bus.metrics.count("checks_left_out")

    async def _check(self, host: str) -> None:
        """Ask a host whether it lives, once more for each time that its connection ended meanwhile."""
        begun = time.perf_counter()
        try:
            again = True
            while again:
                self._checking[host] = False
                await self._ask(host, begun)
                again = self._checking[host]
        finally:
            del self._checking[host]

    async def _ask(self, host: str, begun: float) -> None:
        try:
            await self._bus.request(
                HOST_PING,
                PingRequest(),
                timeout_s=self._settings.gone_check_s,
                patient=False,
                at={"host": host},
            )
        except UnavailableError as error:
            if error.reason not in {"no_responders", "no_answer"} or not self._bus.connected:
                # It is this process that cannot ask: that says nothing about the host.
                self._bus.metrics.count(f"checks_failed.{error.reason}")
                return
            changes = self._book.lose(host, at_ns=time.time_ns())
            self._bus.metrics.observe_ms("gone", (time.perf_counter() - begun) * 1e3)
            self.changed(changes, f"the connection of host {host} has ended")
        except TocsinError as error:
            # It answered, if only that it is starting or leaving.
            self._bus.metrics.count(f"checks_refused.{error.reason}")
        else:
            self._bus.metrics.count("hosts_back")

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            self._bus.metrics.gauge("presence_listening", int(self.listening))
            self.changed(self._book.sweep(now_ns=time.time_ns()), "no heartbeat has named them")

    async def _publish(self, changes: list[StateChange], why: str) -> None:
        for start in range(0, len(changes), MAX_CHANGES):
            states = AgentStates(why=why, changes=tuple(changes[start : start + MAX_CHANGES]))
            try:
                await self._bus.event(EVENT_AGENT_STATE, states)
            except TocsinError as error:
                self._bus.metrics.count(f"unsent.{error.reason}")


async def _call(hook: OnGone, agents: tuple[str, ...]) -> None:
    waiting = hook(agents)
    if waiting is not None:
        await waiting
