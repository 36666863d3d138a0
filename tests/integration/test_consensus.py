"""Decisions over a real broker: from a root-signed epoch to a certificate that anyone can check."""

from __future__ import annotations

import asyncio
import time

import pytest
from consensus_fleet import Fleet, answered, cut_end, has_end, start_process
from council import ballot_body
from support import DOMAIN, World, eventually

from tocsin.agent.ballots import BallotCaster, BallotLog
from tocsin.consensus.store import VoteLog
from tocsin.contracts.catalogue import BALLOT, CONSENSUS_BALLOT, CONSENSUS_EPOCH, CONSENSUS_EPOCHS
from tocsin.contracts.decisions import Outcome
from tocsin.contracts.errors import ConflictError, TocsinError
from tocsin.contracts.identifiers import Role, ServiceName, SpiffeId
from tocsin.evidence.certificate import certificate_digest
from tocsin.evidence.epochs import open_epoch
from tocsin.evidence.verification import verify

CONSENSUS = SpiffeId.service(DOMAIN, ServiceName.CONSENSUS, "0")


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
    assert announced.outcome is Outcome.INSUFFICIENT
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
    fleet.credentials[0].save(folder, "consensus-0")
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
        await eventually(lambda: has_end(fleet.state_dir / "consensus-0.votes"), within_s=20)
        certificates.add((await fleet.outcome(decision)).certificate)
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
    # It counts a decision once its end is on the disk, which may be after everyone has heard of it.
    await eventually(lambda: service.metrics.counter("decisions.decided") == 5)


async def test_a_ballot_beyond_the_quorum_is_not_even_verified(world: World) -> None:
    """They are what a decision costs. Whoever is late is named as missing, as before."""
    fleet = Fleet(world)
    await fleet.populate(hosts=4, per_host=10)
    service = await fleet.start()
    await fleet.begin()
    decision = await fleet.propose()
    for host in fleet.hosts[:4]:
        await host.ballot(0)
    await fleet.outcome(decision)
    await fleet.hosts[4].ballot(0)
    await eventually(lambda: service.metrics.counter("not_needed.CONSENSUS_BALLOT") >= 10)
    assert service.metrics.counter("ballots_taken") <= 31
