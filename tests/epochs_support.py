"""A fleet whose epochs go on by themselves: fleet, a router, four consensus instances, hosts with a real admin."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from council import proposal_body
from fleet_support import FleetWorld, agent_id, recorder, tokens_for
from support import DOMAIN, World, eventually

from tocsin.agent import Agent, AgentHost
from tocsin.agent.epochs import EpochReader, fetch_proof
from tocsin.agent.roles.admin import Admin
from tocsin.bus import Bus, Credentials, Sent
from tocsin.cli.authority import sign_as_root
from tocsin.consensus.service import ConsensusService
from tocsin.consensus.settings import ConsensusSettings
from tocsin.contracts.catalogue import (
    CONSENSUS_DECISION,
    CONSENSUS_EPOCH,
    CONSENSUS_PROPOSAL,
    DELIVER_ALL,
)
from tocsin.contracts.decisions import DecisionAnnounced, Epoch, EpochInstalled, Proposal
from tocsin.contracts.identifiers import Role, ServiceName, SpiffeId
from tocsin.evidence.epochs import InstalledEpoch, make_epoch
from tocsin.fleet.service import FleetService
from tocsin.router.service import RouterService
from tocsin.router.settings import RouterSettings

AGENTS = {
    "h0": [("admin-1", Role.ADMIN), *((f"s-0-{i}", Role.SENTINEL) for i in range(4))],
    "h1": [(f"s-1-{i}", Role.SENTINEL) for i in range(8)],
    "h2": [(f"s-2-{i}", Role.SENTINEL) for i in range(8)],
    **{host: [(f"s-{host}", Role.SENTINEL)] for host in ("late", "later", "latest")},
}
"""21 seats at first: of these one a day may go without proof."""
AT_ONCE = ("h0", "h1", "h2")


def admin_or_recorder(role: Role, name: str) -> Agent:
    return Admin(name) if role is Role.ADMIN else recorder(role, name)


@dataclass
class Republic:
    """What runs, and what is seen of it."""

    world: World
    fleet: FleetWorld
    service: FleetService
    cli: Bus
    router: RouterService = field(init=False)
    hosts: dict[str, AgentHost] = field(default_factory=dict)
    instances: list[ConsensusService] = field(default_factory=list)
    credentials: list[Credentials] = field(default_factory=list)
    announced: list[DecisionAnnounced] = field(default_factory=list)

    @property
    def root_pem(self) -> bytes:
        return self.world.authority.certificate_pem

    async def enrol(self, host: str) -> AgentHost:
        self.hosts[host] = await self.fleet.start_host(host, AGENTS[host], admin_or_recorder)
        return self.hosts[host]

    async def start_router(self, instance: str = "0") -> RouterService:
        values = self.world.settings().model_dump() | {"instance": instance}
        bus = await self.world.service(ServiceName.ROUTER, instance)
        router = RouterService(bus, RouterSettings(**values))
        await router.start()
        self.fleet.stack.push_async_callback(router.stop)
        return router

    async def start_instance(self, number: int) -> ConsensusService:
        bus = await self.world.bus(credentials=self.credentials[number])
        values = self.world.settings().model_dump() | {"instance": str(number)}
        service = ConsensusService(bus, ConsensusSettings(**values, state_dir=self.world.folder / "consensus"))
        await service.start()
        return service

    async def begin(self) -> EpochInstalled:
        """Have the root sign epoch 0 of all who are enrolled."""
        return await self.install(self.record(0))

    def record(self, number: int, *, without: tuple[str, ...] = ()) -> Epoch:
        entries = [e for e in self.service.book.roster(now_ns=time.time_ns()) if e.agent.name not in without]
        keys = {e.agent.key_id: self.cli.trust.identity(e.agent.key_id) for e in entries}
        return make_epoch(
            number=number,
            trust_domain=DOMAIN,
            participants=[
                (agent_id(e.agent.role, e.agent.name), e.agent.key_id, int(keys[e.agent.key_id].algorithm))  # type: ignore[union-attr]
                for e in entries
            ],
            instances=[(c.id, c.key.signer.key_id, int(c.key.algorithm)) for c in self.credentials],
            created_ns=time.time_ns(),
        )

    async def install(self, record: Epoch) -> EpochInstalled:
        root = self.world.authority
        sent = sign_as_root(root, CONSENSUS_EPOCH.request_type, record, audience="service.consensus")
        installed = await self.cli.ask_with(CONSENSUS_EPOCH, sent, root.id, timeout_s=10)
        await self.reached(record.number)
        return installed

    async def reached(
        self, number: int, *, within_s: float = 30, without: tuple[str, ...] = ()
    ) -> InstalledEpoch:
        """Wait until everybody goes by an epoch; return it."""

        def there() -> bool:
            epochs = [host.epoch for name, host in self.hosts.items() if name not in without]
            epochs += [one.protocol.epoch for one in self.instances]
            return all(one is not None and one.epoch.number >= number for one in epochs)

        await eventually(there, within_s=within_s)
        epochs = [h.epoch for n, h in self.hosts.items() if n not in without]
        found = {one.digest: one for one in epochs if one is not None}
        found |= {i.protocol.epoch.digest: i.protocol.epoch for i in self.instances if i.protocol.epoch}
        assert len(found) == 1, "they go by one epoch"
        return next(iter(found.values()))

    async def propose(self, epoch: InstalledEpoch, subject: str = "scan") -> Sent:
        return await self.send(proposal_body(epoch.digest, subject=subject))

    async def send(self, body: Proposal) -> Sent:
        """Send a proposal of the admin's, past its own judgement."""
        sent = await self.make(body)
        await self.cli.send(DELIVER_ALL.at(), sent)
        return sent

    async def make(self, body: Proposal) -> Sent:
        admin = self.hosts["h0"].agents["admin-1"]
        return await self.hosts["h0"]._bus.make(CONSENSUS_PROPOSAL, body, audience="all", sender=admin.id)

    async def outcome(self, decision: bytes) -> DecisionAnnounced:
        await eventually(lambda: any(a.decision == decision for a in self.announced), within_s=20)
        return next(a for a in self.announced if a.decision == decision)

    async def proof(self, decision: bytes) -> bytes:
        """Return a decision's certificate with its chain, as an operator exports it."""
        return await fetch_proof(self.cli, decision)

    async def latest(self) -> InstalledEpoch | None:
        """Return what somebody who has just come believes."""
        return await EpochReader(self.cli).latest()


@asynccontextmanager
async def republic_in(world: World, **settings: Any) -> AsyncIterator[Republic]:
    """Run it, with everybody but the late host enrolled, and epoch 0 signed by the root."""
    tokens = [token for host, agents in AGENTS.items() for token in tokens_for(host, agents)]
    quick = {
        "epoch_quiet_s": 0.1,
        "epoch_interval_s": 0,
        "epoch_ask_again_s": 2,
        "epoch_absent_after_s": 1,
        "silent_after_s": 1,
    }
    async with FleetWorld(world, tokens, world.folder) as fleet:
        service = await fleet.start_fleet(**quick | settings)
        republic = Republic(world, fleet, service, await world.service(ServiceName.CLI))
        republic.router = await republic.start_router()

        async def on_decision(body: DecisionAnnounced, _: object) -> None:
            republic.announced.append(body)

        await republic.cli.subscribe(CONSENSUS_DECISION, on_decision)
        ids = [SpiffeId.service(DOMAIN, ServiceName.CONSENSUS, str(i)) for i in range(4)]
        republic.credentials = [world.credentials(one) for one in ids]
        republic.instances = [await republic.start_instance(i) for i in range(4)]
        for one in republic.instances:
            fleet.stack.push_async_callback(one.stop)
        for host in AT_ONCE:
            await republic.enrol(host)
        seats = sum(len(AGENTS[host]) for host in AT_ONCE)
        known = republic.service.book.roster
        await eventually(lambda: sum(e.last_seen_ns is not None for e in known(now_ns=time.time_ns())) == seats)
        await eventually(
            lambda: all(republic.cli.trust.identity(e.agent.key_id) for e in known(now_ns=time.time_ns()))
        )
        await republic.begin()
        yield republic
