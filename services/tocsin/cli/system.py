"""A running Tocsin as this command sees it: who must be ready, and who decides.

:class:`~tocsin.cli.stack.Stack` is one that this command has started itself, :class:`Remote` one that runs elsewhere.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tocsin.agent.epochs import EpochReader
from tocsin.bus import Bus, BusSettings, Sent
from tocsin.bus.roster import read_roster
from tocsin.cli.authority import sign_as_root
from tocsin.cli.fleetplan import PlannedAgent
from tocsin.cli.installation import Installation
from tocsin.contracts.catalogue import CONSENSUS_EPOCH, PING
from tocsin.contracts.decisions import EpochInstalled, Participant
from tocsin.contracts.errors import ConflictError, UnavailableError
from tocsin.contracts.fleet import AgentState, Roster
from tocsin.contracts.identifiers import ServiceName, SpiffeId
from tocsin.contracts.operations import PingRequest
from tocsin.evidence.epochs import InstalledEpoch, Seat, make_epoch
from tocsin.evidence.reading import read

T = TypeVar("T")

THERE = frozenset({AgentState.HEALTHY, AgentState.SUSPECT, AgentState.QUARANTINED, AgentState.REVOKED})
"""States of an agent that nobody waits for any more."""
OUT = frozenset({AgentState.QUARANTINED, AgentState.REVOKED})
"""States of an agent that does not count in the next epoch."""
SERVICES = tuple(service for service in ServiceName if service is not ServiceName.CLI)
READY_TIMEOUT_S = 60.0
CHANGED_MEANWHILE = 3
"""How often the root signs again because an epoch was decided while it did."""

Progress = Callable[[str, str], None]
"""Told (what, state): ("router", "ready")."""


@dataclass
class System:
    """A system that is there, or is about to be. Use :meth:`start`, then :meth:`stop` whatever happens."""

    installation: Installation
    agents: tuple[PlannedAgent, ...]
    nats_url: str
    consensus: tuple[str, ...] = field(default=("0",), kw_only=True)
    """Names of the consensus instances."""
    timings_s: dict[str, float] = field(default_factory=dict, kw_only=True)

    def start(self) -> None:
        """Hook: start what this command has to start itself."""

    def check(self) -> None:
        """Hook: raise if what was started has ended."""

    def kill_host(self, host: str) -> bool:  # noqa: ARG002 - the hook's signature
        """Hook: kill an agent host for a demonstration; return False if that is not this command's to do."""
        return False

    async def stop(self) -> None:
        """Hook: end what was started."""

    @property
    def what(self) -> str:
        """What runs, in some words."""
        return f"the services at {self.nats_url}"

    @property
    def advice(self) -> str:
        """Where to look when something is not ready."""
        return "are its containers running and healthy?"

    def bus_settings(self) -> BusSettings:
        """Return settings by which this command reaches the bus."""
        return self.installation.bus_settings(self.nats_url)

    async def wait_services(self, bus: Bus, progress: Progress) -> None:
        """Wait until every service answers its ping, and every consensus instance.

        Raises:
            UnavailableError: not all are ready in time; names who is missing.
        """

        async def one(service: ServiceName) -> None:
            progress(service.value, "starting")
            answered: set[str] = set()

            async def ping() -> None:
                pong = await bus.request(PING[service], PingRequest(), timeout_s=1.0)
                answered.add(pong.name)
                if service is ServiceName.CONSENSUS and (missing := set(self.consensus) - answered):
                    # Any of them answers: one that is not there when the epoch comes has to catch up.
                    raise UnavailableError(f"waiting for {', '.join(sorted(missing))}", reason="starting")

            pause_s = 0.01 if service is ServiceName.CONSENSUS else 0.1
            await self._until_ready(ping, service.value, pause_s=pause_s)
            progress(service.value, "ready")

        begun = time.monotonic()
        await asyncio.gather(*(one(service) for service in SERVICES))
        self.timings_s["services"] = time.monotonic() - begun

    async def wait_agents(self, bus: Bus, progress: Progress) -> Roster:
        """Wait until every agent is enrolled and its heartbeat was seen."""
        begun = time.monotonic()
        expected = {agent.name for agent in self.agents}

        async def healthy() -> Roster:
            roster = await read_roster(bus, timeout_s=1.0)
            seen = {entry.agent.name for entry in roster.entries if entry.state in THERE}
            progress("agents", f"{len(expected & seen)} of {len(expected)}")
            if not expected <= seen:
                missing = sorted(expected - seen)
                raise UnavailableError(f"waiting for {', '.join(missing[:5])}", reason="agents_missing")
            return roster

        roster = await self._until_ready(healthy, "agents")
        self.timings_s["agents"] = time.monotonic() - begun
        return roster

    async def install_epoch(self, bus: Bus, roster: Roster, *, anew: bool = False) -> EpochInstalled:
        """Have the root sign who decides, and give it to consensus; afterwards the root's key is not needed.

        An epoch that is installed is kept if the same seats have the same keys; and one that was decided also where
        the root's key is not here, since the fleet sees to the next one itself.

        Args:
            bus: reaches the installation.
            roster: who is enrolled.
            anew: have the root sign in any case.
        """
        for _ in range(CHANGED_MEANWHILE):
            try:
                return await self._install_epoch(bus, roster, anew=anew)
            except ConflictError as error:
                if error.reason != "stale_epoch":
                    raise
        return await self._install_epoch(bus, roster, anew=anew)

    async def _install_epoch(self, bus: Bus, roster: Roster, *, anew: bool) -> EpochInstalled:
        seats = self._seats(bus, roster)
        instances = [self.installation.consensus_seat(instance) for instance in self.consensus]
        root_id = SpiffeId.authority(self.installation.domain, "root")
        held = await EpochReader(bus).latest()
        number, previous = 0, None
        if held is not None:
            record = held.epoch
            number, previous = record.number + 1, held.digest
            same = _seats_of(record.participants) == set(seats)
            if not anew and _seats_of(record.instances) == set(instances):
                if not held.is_checkpoint and (same or not self.installation.has_root_key):
                    return held.installed()
                if same:
                    return await bus.ask_with(CONSENSUS_EPOCH, sent_as(held), root_id, timeout_s=10.0)
        epoch = make_epoch(
            number=number,
            trust_domain=self.installation.domain,
            participants=seats,
            instances=instances,
            created_ns=time.time_ns(),
            previous=previous,
        )
        sent = sign_as_root(
            self.installation.root(),
            CONSENSUS_EPOCH.request_type,
            epoch,
            audience=CONSENSUS_EPOCH.subject.audience,
        )
        return await bus.ask_with(CONSENSUS_EPOCH, sent, root_id, timeout_s=10.0)

    def _seats(self, bus: Bus, roster: Roster) -> list[Seat]:
        """Return every enrolled agent with its key, but for those that are quarantined or whose key was revoked.

        Raises:
            UnavailableError: ``unknown_key``: a certificate has not come here yet.
        """
        seats = []
        for entry in roster.entries:
            if entry.state in OUT or bus.trust.is_revoked(entry.agent.key_id):
                continue
            identity = bus.trust.identity(entry.agent.key_id)
            if identity is None:
                raise UnavailableError(f"the key of {entry.agent.name} is not known yet", reason="unknown_key")
            sender = SpiffeId.agent(self.installation.domain, entry.agent.role, entry.agent.name)
            seats.append((sender, entry.agent.key_id, int(identity.algorithm)))
        return seats

    async def _until_ready(self, ask: Callable[[], Awaitable[T]], what: str, *, pause_s: float = 0.1) -> T:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while True:
            self.check()
            try:
                return await ask()
            except (UnavailableError, TimeoutError) as error:
                if time.monotonic() > deadline:
                    raise UnavailableError(
                        f"{what} not ready within {READY_TIMEOUT_S:g} s: {error}",
                        reason="not_ready",
                        advice=self.advice,
                    ) from error
            await asyncio.sleep(pause_s)


class Remote(System):
    """A system that somebody else has started, e.g. the stack in containers."""

    @classmethod
    def at(cls, nats_url: str, folder: Path) -> Remote:
        """Return the system at a broker's address, by its installation's folder."""
        installation = Installation.find(folder)
        return cls(installation, installation.agents(), nats_url, consensus=installation.consensus_instances())


def sent_as(epoch: InstalledEpoch) -> Sent:
    """Return the root's record of an epoch in its own bytes, to be sent again."""
    record = read(epoch.data, CONSENSUS_EPOCH.request_type, audience=CONSENSUS_EPOCH.subject.audience)
    content = record.envelope.content
    return Sent(content.id, record.leaf, epoch.data, content.issued_at)


def _seats_of(participants: Iterable[Participant]) -> set[Seat]:
    return {(SpiffeId.parse(seat.sender), seat.key_id, seat.algorithm) for seat in participants}


def instances_in_words(installed: EpochInstalled) -> str:
    """Say how many consensus instances there are, and how many of them may be hostile."""
    m, g = installed.instances, installed.instance_faults
    if g == 0:
        return f"{m} consensus instance{'s' if m > 1 else ''}, of which none may be hostile (g = 0)"
    return f"{m} consensus instances, of which {g} may be hostile"
