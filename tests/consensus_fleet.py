"""A fleet that decides over a real broker: an admin, hosts of agents, consensus instances, and who watches."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from council import OPTIONS, ballot_body, proposal_body
from support import DOMAIN, World, eventually

from tocsin.agent.ballots import BallotCaster, BallotLog
from tocsin.bus import Bus, Context, Sent
from tocsin.bus.envelope import encode_body, encode_content, encode_envelope, make_content
from tocsin.consensus.service import ConsensusService
from tocsin.consensus.settings import ConsensusSettings
from tocsin.contracts.catalogue import (
    AUDIT,
    BALLOT,
    CONSENSUS_BALLOT,
    CONSENSUS_DECISION,
    CONSENSUS_EPOCH,
    CONSENSUS_PROPOSAL,
    CONSENSUS_ROUND,
    CONSENSUS_VOTE,
    DELIVER_ALL,
    PING,
)
from tocsin.contracts.decisions import (
    DecisionAnnounced,
    Epoch,
    EpochInstalled,
    Equivocation,
    Option,
    Proposal,
    RoundOpened,
    Vote,
)
from tocsin.contracts.errors import TocsinError
from tocsin.contracts.identifiers import Role, ServiceName, SpiffeId
from tocsin.contracts.operations import PingRequest
from tocsin.crypto import BatchVerifier, LocalKey, TrustStore, leaf_hash, sign_batch
from tocsin.evidence.choices import Question
from tocsin.evidence.epochs import Seat, make_epoch, open_epoch
from tocsin.evidence.rounds import verify_opened

CONSENSUS = SpiffeId.service(DOMAIN, ServiceName.CONSENSUS, "0")


def seat(who: SpiffeId, key: LocalKey) -> Seat:
    return who, key.signer.key_id, key.algorithm


@dataclass
class Host:
    """Some agents on one bus, with their ballots."""

    bus: Bus
    agents: list[SpiffeId]
    log: BallotLog
    caster: BallotCaster
    proposals: list[tuple[Proposal, Context]] = field(default_factory=list)
    opened: list[RoundOpened] = field(default_factory=list)
    tellers: list[str] = field(default_factory=list)
    """Who has told of each of these."""

    async def listen(self) -> None:
        async def on_proposal(body: Proposal, context: Context) -> None:
            self.proposals.append((body, context))

        async def on_round(body: RoundOpened, context: Context) -> None:
            self.opened.append(body)
            self.tellers.append(str(context.sender))

        await self.bus.subscribe(DELIVER_ALL, on_proposal)
        await self.bus.subscribe(CONSENSUS_ROUND, on_round)

    async def ballot(self, option: int | None, agents: list[SpiffeId] | None = None) -> list[Sent]:
        """Let agents ballot for the last proposal, all at once."""
        proposal, context = self.proposals[-1]
        return await asyncio.gather(
            *(self.caster.cast(a, proposal, context, option, "why") for a in agents or self.agents)
        )

    async def ballot_in(
        self, question: Question, choice: str | Option | None, agents: list[SpiffeId] | None = None
    ) -> list[Sent]:
        """Let agents ballot in a round: for an option by its name, for a counter-proposal, or not at all."""
        counter = choice if isinstance(choice, Option) else None
        names = [option.name for option in question.options]
        option = names.index(choice) if isinstance(choice, str) else None
        epoch = self.proposals[-1][0].epoch
        return await asyncio.gather(
            *(
                self.caster.cast_in(a, epoch, question, option, "why", counter=counter)
                for a in agents or self.agents
            )
        )


class Fleet:
    """An admin and hosts of agents on a world, the consensus instance, and who watches."""

    def __init__(self, world: World, instances: int = 1) -> None:
        self.world = world
        self.instances = [SpiffeId.service(DOMAIN, ServiceName.CONSENSUS, str(i)) for i in range(instances)]
        self.hosts: list[Host] = []
        self.seats: list[Seat] = []
        self.credentials = [world.credentials(one) for one in self.instances]
        self.announced: list[DecisionAnnounced] = []
        self.votes: list[tuple[Vote, bytes]] = []
        self.voters: list[str] = []
        self.accused: list[Equivocation] = []
        self.epoch = b""
        self.signed_by_root_last = b""

    @property
    def state_dir(self) -> Path:
        return self.world.folder / "state"

    async def populate(self, *, hosts: int, per_host: int) -> None:
        self.admin = await self.world.agent(Role.ADMIN, "admin")
        self.cli = await self.world.service(ServiceName.CLI)
        await self.add_host(self.admin, [self.admin.id])
        for number in range(hosts):
            agents = [SpiffeId.agent(DOMAIN, Role.SENTINEL, f"s-{number}-{i}") for i in range(per_host)]
            bus = await self.world.bus(SpiffeId.host(DOMAIN, f"h{number}"), *agents)
            await self.add_host(bus, agents)

        async def on_decision(body: DecisionAnnounced, _: Context) -> None:
            self.announced.append(body)

        async def on_vote(body: Vote, context: Context) -> None:
            self.votes.append((body, context.data))
            self.voters.append(str(context.sender))

        async def on_audit(body: Equivocation, context: Context) -> None:
            if context.kind.name == "audit.equivocation":
                self.accused.append(body)

        await self.cli.subscribe(CONSENSUS_DECISION, on_decision)
        await self.cli.subscribe(CONSENSUS_VOTE, on_vote)
        await self.cli.subscribe(AUDIT, on_audit)

    async def add_host(self, bus: Bus, agents: list[SpiffeId]) -> None:
        log = BallotLog(self.world.folder / f"{bus.id.name}.ballots")
        self.world.buses.callback(log.close)
        host = Host(bus, agents, log, BallotCaster(bus, log))
        self.hosts.append(host)
        self.seats += [seat(agent, bus.credentials.key) for agent in agents]
        await host.listen()

    async def start(self, number: int = 0, **settings: Any) -> ConsensusService:
        """Start an instance in this process."""
        bus = await self.world.bus(credentials=self.credentials[number])
        base = self.world.settings().model_dump() | {"instance": str(number)}
        service = ConsensusService(bus, ConsensusSettings(**base, state_dir=self.state_dir, **settings))
        await service.start()
        return service

    def epoch_record(self, number: int = 0) -> Epoch:
        return make_epoch(
            number=number,
            trust_domain=DOMAIN,
            participants=self.seats,
            instances=[seat(one, c.key) for one, c in zip(self.instances, self.credentials, strict=True)],
            created_ns=time.time_ns(),
        )

    def signed_by_root(self, record: Epoch) -> Sent:
        root = self.world.authority
        content = make_content(
            type_name=CONSENSUS_EPOCH.request_type.name,
            sender=str(root.id),
            audience="service.consensus",
            body=encode_body(record),
            now_ns=time.time_ns(),
            ttl_ms=0,
        )
        data = encode_content(content)
        (proof,) = sign_batch(root.signer, [data])
        envelope = encode_envelope(data, root.signer.key_id, proof)
        self.signed_by_root_last = envelope
        return Sent(content.id, leaf_hash(data), envelope, content.issued_at)

    async def install(self, sent: Sent) -> EpochInstalled:
        return await self.cli.ask_with(CONSENSUS_EPOCH, sent, self.world.authority.id, timeout_s=10)

    async def begin(self) -> EpochInstalled:
        installed = await self.install(self.signed_by_root(self.epoch_record()))
        self.epoch = installed.epoch
        return installed

    async def propose(
        self, *, deadline_ms: int = 20_000, rounds: int = 1, options: tuple[Option, ...] = OPTIONS
    ) -> bytes:
        """Send a proposal as a router forwards it; return the decision's id once all hosts have it."""
        body = proposal_body(self.epoch, deadline_ms=deadline_ms, rounds=rounds, options=options)
        sent = await self.admin.make(CONSENSUS_PROPOSAL, body, audience="all")
        await self.deliver(sent)
        self.proposal = sent
        return sent.leaf

    async def deliver(self, sent: Sent) -> None:
        counts = [len(host.proposals) for host in self.hosts]
        await self.admin.send(DELIVER_ALL.at(), sent)
        await eventually(lambda: all(len(h.proposals) > n for h, n in zip(self.hosts, counts, strict=True)))

    async def asked(self, decision: bytes, round_number: int, *, within_s: float = 20) -> Question:
        """Return what a round asks, once every host was told of it and has verified that."""
        if round_number == 1:
            return Question.first(decision, self.hosts[0].proposals[-1][0])
        found: dict[str, RoundOpened] = {}

        def told() -> bool:
            for host in self.hosts:
                for opened in host.opened:
                    if (opened.decision, opened.round) == (decision, round_number):
                        found[host.bus.id.name] = opened
            return len(found) == len(self.hosts)

        await eventually(told, within_s=within_s)
        (proposal, context), bus = self.hosts[0].proposals[-1], self.cli
        data = self.signed_by_root_last
        epoch = open_epoch(data, TrustStore(self.world.authority.certificate_pem, bus.backend))
        questions = {
            name: verify_opened(
                opened, proposal, context.sender, epoch, lambda _: None, bus.backend, BatchVerifier(64)
            ).question
            for name, opened in found.items()
        }
        (question,) = {q.digest: q for q in questions.values()}.values()
        return question

    async def outcome(self, decision: bytes, *, within_s: float = 20) -> DecisionAnnounced:
        await eventually(lambda: any(a.decision == decision for a in self.announced), within_s=within_s)
        return next(a for a in self.announced if a.decision == decision)

    async def send_ballot(self, host: Host, agent: SpiffeId, decision: bytes, option: int) -> None:
        """Send a ballot past the log, as a hostile host can."""
        sent = await host.bus.make(
            BALLOT,
            ballot_body(self.epoch, decision, option),
            audience="service.consensus",
            sender=agent,
        )
        await host.bus.send(CONSENSUS_BALLOT.at(decision=decision.hex(), agent=agent.name), sent)


def start_process(
    world: World, credentials: Path, state_dir: Path, instance: str = "0"
) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "TOCSIN_NATS_URL": world.broker.url,
        "TOCSIN_CREDENTIALS_DIR": str(credentials),
        "TOCSIN_STATE_DIR": str(state_dir),
        "TOCSIN_INSTANCE": instance,
    }
    if world.broker.token_file is not None:
        environment["TOCSIN_NATS_TOKEN_FILE"] = str(world.broker.token_file)
    return subprocess.Popen([sys.executable, "-m", "tocsin.consensus"], env=environment)


async def answered(fleet: Fleet) -> None:
    """Wait until the instance is ready."""
    async with asyncio.timeout(20):
        while True:
            try:
                await fleet.cli.request(PING[ServiceName.CONSENSUS], PingRequest(), timeout_s=2)
            except TocsinError:
                continue
            return


def cut_end(path: Path) -> None:
    """Take the record of the announcement off the log, if the kill came too late to prevent it."""
    data = path.read_bytes()
    last = data.rindex(b"TEL1")
    if data[last + 28 : last + 29] == b"D":
        path.write_bytes(data[:last])


def has_end(path: Path) -> bool:
    """Tell whether the log's last entry says that a decision was announced."""
    data = path.read_bytes()
    last = data.rindex(b"TEL1")
    return data[last + 28 : last + 29] == b"D"
