"""Decisions over a real broker: from a root-signed epoch to a certificate that anyone can check."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from council import ballot_body, proposal_body
from support import DOMAIN, World, eventually

from tocsin.agent.ballots import BallotCaster, BallotLog
from tocsin.bus import Bus, Context, Sent
from tocsin.bus.envelope import encode_body, encode_content, encode_envelope, make_content
from tocsin.consensus.service import ConsensusService
from tocsin.consensus.settings import ConsensusSettings
from tocsin.consensus.store import VoteLog
from tocsin.contracts.catalogue import (
    AUDIT,
    BALLOT,
    CONSENSUS_BALLOT,
    CONSENSUS_DECISION,
    CONSENSUS_EPOCH,
    CONSENSUS_EPOCHS,
    CONSENSUS_PROPOSAL,
    CONSENSUS_VOTE,
    DELIVER_ALL,
    PING,
)
from tocsin.contracts.decisions import (
    DecisionAnnounced,
    Epoch,
    EpochInstalled,
    Equivocation,
    Outcome,
    Proposal,
    Vote,
)
from tocsin.contracts.errors import ConflictError, TocsinError
from tocsin.contracts.identifiers import Role, ServiceName, SpiffeId
from tocsin.contracts.operations import PingRequest
from tocsin.crypto import LocalKey, leaf_hash, sign_batch
from tocsin.evidence.certificate import certificate_digest
from tocsin.evidence.epochs import Seat, make_epoch, open_epoch
from tocsin.evidence.verification import verify

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

    async def listen(self) -> None:
        async def on_proposal(body: Proposal, context: Context) -> None:
            self.proposals.append((body, context))

        await self.bus.subscribe(DELIVER_ALL, on_proposal)

    async def ballot(self, option: int | None, agents: list[SpiffeId] | None = None) -> list[Sent]:
        """Let agents ballot for the last proposal, all at once."""
        proposal, context = self.proposals[-1]
        return await asyncio.gather(
            *(self.caster.cast(a, proposal, context, option, "why") for a in agents or self.agents)
        )


class Fleet:
    """An admin and hosts of agents on a world, the consensus instance, and who watches."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.hosts: list[Host] = []
        self.seats: list[Seat] = []
        self.credentials = world.credentials(CONSENSUS)
        self.announced: list[DecisionAnnounced] = []
        self.votes: list[tuple[Vote, bytes]] = []
        self.accused: list[Equivocation] = []
        self.epoch = b""

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

    async def start(self) -> ConsensusService:
        """Start the instance in this process."""
        bus = await self.world.bus(credentials=self.credentials)
        base = self.world.settings().model_dump()
        service = ConsensusService(bus, ConsensusSettings(**base, state_dir=self.state_dir))
        await service.start()
        return service

    def epoch_record(self, number: int = 0) -> Epoch:
        return make_epoch(
            number=number,
            trust_domain=DOMAIN,
            participants=self.seats,
            instances=[seat(CONSENSUS, self.credentials.key)],
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
        return Sent(content.id, leaf_hash(data), envelope, content.issued_at)

    async def install(self, sent: Sent) -> EpochInstalled:
        return await self.cli.ask_with(CONSENSUS_EPOCH, sent, self.world.authority.id, timeout_s=10)

    async def begin(self) -> EpochInstalled:
        installed = await self.install(self.signed_by_root(self.epoch_record()))
        self.epoch = installed.epoch
        return installed

    async def propose(self, *, deadline_ms: int = 20_000) -> bytes:
        """Send a proposal as a router forwards it; return the decision's id once all hosts have it."""
        sent = await self.admin.make(
            CONSENSUS_PROPOSAL, proposal_body(self.epoch, deadline_ms=deadline_ms), audience="all"
        )
        await self.deliver(sent)
        self.proposal = sent
        return sent.leaf

    async def deliver(self, sent: Sent) -> None:
        counts = [len(host.proposals) for host in self.hosts]
        await self.admin.send(DELIVER_ALL.at(), sent)
        await eventually(lambda: all(len(h.proposals) > n for h, n in zip(self.hosts, counts, strict=True)))

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


@pytest.fixture
async def fleet(world: World) -> Fleet:
    """An admin and three hosts of three agents: n = 10, f = 3, q = 7."""
    fleet = Fleet(world)
    await fleet.populate(hosts=3, per_host=3)
    return fleet


async def test_a_decision_leaves_a_certificate_that_the_root_alone_can_check(fleet: Fleet) -> None:
    await fleet.start()
    installed = await fleet.begin()
    assert (installed.participants, installed.quorum, installed.byzantine_tolerant) == (10, 7, True)
    decision = await fleet.propose()
    for host in fleet.hosts:
        await host.ballot(0)
    announced = await fleet.outcome(decision)
    assert announced.outcome is Outcome.DECIDED
    assert announced.option is not None
    assert announced.object_name is not None
    data = await fleet.cli.get_certificate(announced.object_name)
    assert certificate_digest(data) == announced.certificate
    assert len(data) == announced.certificate_bytes
    decided = verify(data, fleet.world.authority.certificate_pem)
    assert (decided.decision, decided.option) == (decision, announced.option)
    assert (decided.ballots_verified, decided.quorum, decided.participants) == (7, 7, 10)
    assert decided.instances == (str(CONSENSUS),)


async def test_the_epoch_is_published_in_the_roots_own_bytes(fleet: Fleet) -> None:
    await fleet.start()
    sent = fleet.signed_by_root(fleet.epoch_record())
    await fleet.install(sent)
    last = await fleet.cli.last(CONSENSUS_EPOCHS)
    assert last is not None
    assert last[1].data == sent.data
    epoch = open_epoch(last[1].data, fleet.cli.trust)
    assert epoch.digest == sent.leaf
    # The same again is no change; another one of the same number is refused.
    assert (await fleet.install(sent)).epoch == sent.leaf
    with pytest.raises(ConflictError) as caught:
        await fleet.install(fleet.signed_by_root(fleet.epoch_record()))
    assert caught.value.reason == "stale_epoch"


async def test_an_epoch_of_anybody_else_is_refused(fleet: Fleet) -> None:
    await fleet.start()
    forged = await fleet.admin.make(BALLOT, ballot_body(bytes(32), bytes(32), 0), audience="service.consensus")
    with pytest.raises(TocsinError):
        await fleet.cli.ask_with(CONSENSUS_EPOCH, forged, fleet.world.authority.id, timeout_s=1)
    record = fleet.epoch_record().model_copy(update={"quorum": 1})
    with pytest.raises(TocsinError) as caught:
        await fleet.install(fleet.signed_by_root(record))
    assert caught.value.reason == "wrong_numbers"


async def test_strangers_and_second_ballots_do_not_count(fleet: Fleet) -> None:
    service = await fleet.start()
    await fleet.begin()
    stranger = await fleet.world.agent(Role.GUARDIAN, "late")
    decision = await fleet.propose(deadline_ms=3_000)
    await eventually(lambda: service.protocol.open_decisions == 1)
    first = fleet.hosts[1]
    await first.ballot(0)
    for agent in first.agents:
        await fleet.send_ballot(first, agent, decision, 1)
    await fleet.hosts[2].ballot(0)
    sent = await stranger.make(BALLOT, ballot_body(fleet.epoch, decision, 0), audience="service.consensus")
    await stranger.send(CONSENSUS_BALLOT.at(decision=decision.hex(), agent="late"), sent)
    await eventually(lambda: service.metrics.counter("handler_refusals.not_a_participant") == 1)
    await eventually(lambda: len(fleet.accused) == 3)
    assert {proof.accused for proof in fleet.accused} == set(map(str, first.agents))
    announced = await fleet.outcome(decision)
    assert announced.outcome is Outcome.CLOSED
    assert announced.certificate is None
    assert (announced.ballots_for, announced.ballots_received) == (6, 6)
    assert announced.missing == ("admin", "s-2-0", "s-2-1", "s-2-2")


async def test_a_caster_resends_its_ballot_verbatim_and_refuses_another(fleet: Fleet) -> None:
    await fleet.start()
    await fleet.begin()
    await fleet.propose()
    host = fleet.hosts[1]
    first = await host.ballot(0)
    assert await host.ballot(0) == first
    assert len(host.log) == 3
    with pytest.raises(ConflictError):
        await host.ballot(1)
    # Also for who knows it from the disk only.
    host.log.close()
    host.log = BallotLog(fleet.world.folder / "h0.ballots")
    fleet.world.buses.callback(host.log.close)
    host.caster = BallotCaster(host.bus, host.log)
    assert await host.ballot(0) == first
    with pytest.raises(ConflictError):
        await host.ballot(None)


async def test_one_agent_asked_twice_at_once_casts_one_ballot(fleet: Fleet) -> None:
    await fleet.start()
    await fleet.begin()
    await fleet.propose()
    host = fleet.hosts[1]
    agent = host.agents[0]
    outcomes = await asyncio.gather(
        host.ballot(0, [agent]), host.ballot(0, [agent]), host.ballot(1, [agent]), return_exceptions=True
    )
    assert outcomes[0] == outcomes[1]
    assert isinstance(outcomes[2], ConflictError)
    assert len(host.log) == 1


async def test_agents_of_a_host_that_ballot_at_once_share_a_signature(fleet: Fleet) -> None:
    await fleet.start()
    await fleet.begin()
    await fleet.propose()
    host = fleet.hosts[1]
    before = host.bus.metrics.counter("envelopes_signed"), host.bus.metrics.counter("signatures_made")
    await host.ballot(0)
    ballots = host.bus.metrics.counter("envelopes_signed") - before[0]
    assert host.bus.metrics.counter("signatures_made") - before[1] <= ballots - 2


async def test_an_instance_restarted_midway_goes_on_and_votes_once(fleet: Fleet) -> None:
    service = await fleet.start()
    await fleet.begin()
    decision = await fleet.propose()
    for host in fleet.hosts[1:3]:
        await host.ballot(0)
    await eventually(lambda: service.metrics.counter("ballots_taken") == 6)
    await service.stop()
    await service.bus.__aexit__(None, None, None)
    again = await fleet.start()
    assert again.protocol.epoch is not None
    # The former process had not voted: the proposer asks again, and the agents send what they sent.
    await fleet.deliver(fleet.proposal)
    for host in fleet.hosts:
        await host.ballot(0)
    assert (await fleet.outcome(decision)).outcome is Outcome.DECIDED
    assert len(fleet.votes) == 3


async def test_a_killed_process_does_not_vote_twice(fleet: Fleet) -> None:
    """kill -9 between its votes and its announcement: the next process ends the decision with those votes."""
    world = fleet.world
    folder = world.folder / "credentials"
    fleet.credentials.save(folder, "consensus-0")
    process = start_process(world, folder, fleet.state_dir)
    try:
        await answered(fleet)
        await fleet.begin()
        decision = await fleet.propose()
        for host in fleet.hosts:
            await host.ballot(0)
        await eventually(lambda: len(fleet.votes) == 3)
    finally:
        process.kill()
        process.wait(10)
    first = sorted(data for _, data in fleet.votes)
    certificates = {(await fleet.outcome(decision)).certificate} if fleet.announced else set()
    cut_end(fleet.state_dir / "consensus-0.votes")
    process = start_process(world, folder, fleet.state_dir)
    try:
        before = len(fleet.announced)
        await eventually(lambda: len(fleet.announced) > before, within_s=20)
        certificates.add(fleet.announced[-1].certificate)
        await fleet.deliver(fleet.proposal)
        await answered(fleet)
    finally:
        process.terminate()
        assert process.wait(15) == 0
    assert fleet.announced[-1].outcome is Outcome.DECIDED
    assert len(certificates) == 1
    assert set(first) == {data for _, data in fleet.votes}  # sent again, in the same bytes
    _, recovered = await VoteLog.open(fleet.state_dir / "consensus-0.votes", fleet.cli.trust, time.time_ns())
    assert list(recovered.ended) == [decision]


async def test_who_has_lost_its_log_takes_no_part_in_that_epoch(fleet: Fleet) -> None:
    service = await fleet.start()
    sent = fleet.signed_by_root(fleet.epoch_record())
    await fleet.install(sent)
    await service.stop()
    await service.bus.__aexit__(None, None, None)
    (fleet.state_dir / "consensus-0.votes").unlink()
    again = await fleet.start()
    assert again.protocol.epoch is None
    with pytest.raises(ConflictError):
        await fleet.install(sent)
    await fleet.install(fleet.signed_by_root(fleet.epoch_record(number=1)))


async def test_a_forged_epoch_in_the_stream_stops_nobody(fleet: Fleet) -> None:
    service = await fleet.start()
    await fleet.begin()
    await service.stop()
    await service.bus.__aexit__(None, None, None)
    await fleet.cli.connection.js.publish(CONSENSUS_EPOCHS.at(number="9"), b"\x00forged")
    again = await fleet.start()
    assert again.protocol.epoch is not None
    assert again.protocol.epoch.digest == fleet.epoch


async def test_a_decision_goes_on_in_its_epoch_though_a_later_one_has_other_seats(fleet: Fleet) -> None:
    """The ballots of who has left since still count in it, and its certificate needs their keys."""
    await fleet.start()
    await fleet.begin()
    decision = await fleet.propose()
    seats, leaving = fleet.seats, {seat[0] for seat in fleet.seats if seat[0].name.startswith("s-0-")}
    fleet.seats = [seat for seat in seats if seat[0] not in leaving]
    await fleet.install(fleet.signed_by_root(fleet.epoch_record(number=1)))
    for host in fleet.hosts:
        await host.ballot(0)
    announced = await fleet.outcome(decision, within_s=5)
    assert announced.outcome is Outcome.DECIDED
    decided = verify(
        await fleet.cli.get_certificate(announced.object_name or ""), fleet.world.authority.certificate_pem
    )
    assert decided.epoch == 0
    assert set(map(str, leaving)) <= set(decided.voters)


async def test_forty_agents_decide_again_and_again(world: World) -> None:
    fleet = Fleet(world)
    await fleet.populate(hosts=4, per_host=10)
    service = await fleet.start()
    await fleet.begin()
    for _ in range(5):
        decision = await fleet.propose()
        await asyncio.gather(*(host.ballot(0) for host in fleet.hosts))
        await fleet.outcome(decision)
    data = await fleet.cli.get_certificate(fleet.announced[-1].object_name or "")
    decided = verify(data, world.authority.certificate_pem)
    assert (decided.participants, decided.quorum, decided.ballots_verified) == (41, 28, 28)
    assert service.metrics.counter("decisions.decided") == 5


def start_process(world: World, credentials: Path, state_dir: Path) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "TOCSIN_NATS_URL": world.broker.url,
        "TOCSIN_CREDENTIALS_DIR": str(credentials),
        "TOCSIN_STATE_DIR": str(state_dir),
        "TOCSIN_INSTANCE": "0",
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
