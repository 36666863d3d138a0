"""Four consensus instances over a real broker: one outcome, whoever of them is away, late, or hostile."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from consensus_fleet import Fleet
from support import World, eventually

from tocsin.consensus.service import ConsensusService
from tocsin.contracts.catalogue import CONSENSUS_VOTE, VOTE
from tocsin.contracts.decisions import Outcome, Step, Vote
from tocsin.evidence.choices import close_value
from tocsin.evidence.epochs import open_epoch
from tocsin.evidence.misbehaviour import verify_misbehaviour
from tocsin.evidence.verification import verify

FOUR = range(4)


@pytest.fixture
async def fleet(world: World) -> Fleet:
    """An admin and three hosts of three agents, and four instances: m = 4, g = 1, Q = 3."""
    fleet = Fleet(world, instances=4)
    await fleet.populate(hosts=3, per_host=3)
    return fleet


async def begin(fleet: Fleet, services: list[ConsensusService]) -> None:
    """Install the epoch at one instance; the others follow."""
    await fleet.begin()
    await eventually(lambda: all(s.protocol.epoch is not None for s in services))


async def halt(service: ConsensusService) -> None:
    await service.stop()
    await service.bus.__aexit__(None, None, None)


def leader_of(fleet: Fleet, decision: bytes) -> int:
    """Return the number of the instance that leads a decision's first view."""
    return int.from_bytes(decision[:4], "big") % len(fleet.instances)


def said(fleet: Fleet) -> dict[tuple[bytes, str, Step, int], set[bytes | None]]:
    """Return what each instance has said in each step, whatever its bytes."""
    found: dict[tuple[bytes, str, Step, int], set[bytes | None]] = {}
    for vote, sender in zip((v for v, _ in fleet.votes), fleet.voters, strict=True):
        found.setdefault((vote.decision, sender, vote.step, vote.view), set()).add(vote.value)
    return found


async def test_four_instances_decide_and_one_announces(fleet: Fleet) -> None:
    services = [await fleet.start(i) for i in FOUR]
    await begin(fleet, services)
    for _ in range(3):
        decision = await fleet.propose()
        for host in fleet.hosts:
            await host.ballot(0)
        announced = await fleet.outcome(decision)
        assert announced.outcome is Outcome.DECIDED
        data = await fleet.cli.get_certificate(announced.object_name or "")
        decided = verify(data, fleet.world.authority.certificate_pem)
        assert (decided.instances_total, decided.instance_quorum, decided.instance_faults) == (4, 3, 1)
        assert len(decided.instances) == 3
    # The others have looked, found the announcement and checked it, and let the decision go.
    await eventually(lambda: not any(s.protocol.busy for s in services), within_s=30)
    assert len(fleet.announced) == 3
    await eventually(lambda: sum(s.metrics.counter("decisions.decided") for s in services) == 3)
    assert all(len(values) == 1 for values in said(fleet).values())


async def test_a_dead_leader_costs_a_view(fleet: Fleet) -> None:
    services = [await fleet.start(i) for i in FOUR]
    await begin(fleet, services)
    decision = await fleet.propose()
    dead = leader_of(fleet, decision)
    await halt(services[dead])
    for host in fleet.hosts:
        await host.ballot(0)
    announced = await fleet.outcome(decision)
    assert announced.outcome is Outcome.DECIDED
    decided = verify(
        await fleet.cli.get_certificate(announced.object_name or ""), fleet.world.authority.certificate_pem
    )
    assert decided.view > 1
    assert str(fleet.instances[dead]) not in decided.instances


async def test_two_of_four_decide_nothing_and_a_third_that_comes_late_is_told_all(fleet: Fleet) -> None:
    """It lacks the epoch, the proposal and the ballots; it takes them from the others, and then they are three."""
    services = [await fleet.start(i) for i in FOUR]
    # Its log is there from before the epoch, so it has missed the epoch and lost nothing.
    await halt(services[2])
    await halt(services[3])
    await begin(fleet, services[:2])
    decision = await fleet.propose(deadline_ms=60_000)
    for host in fleet.hosts:
        await host.ballot(0)
    await eventually(lambda: Counter(v.step for v, _ in fleet.votes)[Step.TIMEOUT] >= 4, within_s=30)
    assert not fleet.announced
    late = await fleet.start(3)
    announced = await fleet.outcome(decision, within_s=40)
    assert announced.outcome is Outcome.DECIDED
    assert late.protocol.epoch is not None
    assert late.metrics.counter("asked") >= 1
    decided = verify(
        await fleet.cli.get_certificate(announced.object_name or ""), fleet.world.authority.certificate_pem
    )
    assert str(fleet.instances[3]) in decided.instances


async def test_the_deadline_closes_with_four_as_with_one(fleet: Fleet) -> None:
    services = [await fleet.start(i) for i in FOUR]
    await begin(fleet, services)
    decision = await fleet.propose(deadline_ms=500)
    announced = await fleet.outcome(decision)
    assert (announced.outcome, announced.certificate) == (Outcome.INSUFFICIENT, None)
    assert len(announced.commit) == 3


async def test_all_instances_restarted_midway_go_on_with_the_same_votes(fleet: Fleet) -> None:
    services = [await fleet.start(i) for i in FOUR]
    await begin(fleet, services)
    decision = await fleet.propose(deadline_ms=60_000)
    # Only two are there when the ballots come: they vote, time out and lock nothing.
    for number in (2, 3):
        await halt(services[number])
    for host in fleet.hosts:
        await host.ballot(0)
    await eventually(lambda: any(v.step is Step.TIMEOUT for v, _ in fleet.votes), within_s=30)
    for number in (0, 1):
        await halt(services[number])
    again = [await fleet.start(i) for i in FOUR]
    announced = await fleet.outcome(decision, within_s=40)
    assert announced.outcome is Outcome.DECIDED
    assert all(len(values) == 1 for values in said(fleet).values())
    await eventually(lambda: not any(s.protocol.busy for s in again), within_s=30)
    assert len(fleet.announced) == 1


async def test_an_instance_that_says_two_things_is_proven_to(fleet: Fleet) -> None:
    """Instance 3 is a hostile program with its key: it votes for both outcomes."""
    services = [await fleet.start(i) for i in range(3)]
    await begin(fleet, services)
    hostile = await fleet.world.bus(credentials=fleet.credentials[3])
    decision = await fleet.propose()
    for value in (close_value(decision, 1), bytes(32)):
        vote = Vote(step=Step.VOTE1, epoch=fleet.epoch, decision=decision, round=1, view=1, value=value)
        sent = await hostile.make(VOTE, vote, audience="service.consensus")
        await hostile.send(CONSENSUS_VOTE.at(decision=decision.hex()), sent)
    await eventually(lambda: len(fleet.accused) >= 1)
    for host in fleet.hosts:
        await host.ballot(0)
    assert (await fleet.outcome(decision)).outcome is Outcome.DECIDED
    assert {proof.accused for proof in fleet.accused} == {str(fleet.instances[3])}
    epoch = services[0].protocol.epoch
    assert epoch is not None
    assert open_epoch(epoch.data, fleet.cli.trust).digest == epoch.digest
    public_key = fleet.credentials[3].key.signer.public_key
    seat = verify_misbehaviour(fleet.accused[0], epoch, public_key, fleet.cli.backend)
    assert seat.sender == str(fleet.instances[3])


async def test_forged_and_misplaced_steps_are_refused_by_name(fleet: Fleet) -> None:
    services = [await fleet.start(i) for i in range(3)]
    await begin(fleet, services)
    hostile = await fleet.world.bus(credentials=fleet.credentials[3])
    decision = await fleet.propose()
    value = close_value(decision, 1)
    plain = {"epoch": fleet.epoch, "decision": decision, "round": 1, "value": value}
    own = await hostile.make(VOTE, Vote(step=Step.VOTE1, view=1, **plain), audience="service.consensus")
    wrong: list[tuple[str, Vote]] = [
        ("unknown_epoch", Vote(step=Step.VOTE1, view=1, **(plain | {"epoch": bytes(32)}))),
        ("bad_vote", Vote(step=Step.VOTE2, view=2, high_view=1, high_value=value, **plain)),
        ("bad_vote", Vote(step=Step.PROPOSE, view=1, high_view=1, high_value=value, **plain)),
        (
            "no_quorum_cert",
            Vote(step=Step.PROPOSE, view=2, high_view=1, high_value=value, certificate=(own.data,), **plain),
        ),
        (
            "duplicate_instance",
            Vote(
                step=Step.PROPOSE, view=2, high_view=1, high_value=value, certificate=(own.data,) * 3, **plain
            ),
        ),
        (
            "bad_quorum_cert",
            Vote(
                step=Step.PROPOSE,
                view=3,
                high_view=2,
                high_value=value,
                certificate=(own.data,) * 3,
                **plain,
            ),
        ),
        ("wrong_round", Vote(step=Step.VOTE1, view=1, **(plain | {"round": 2}))),
    ]
    for reason, vote in wrong:
        before = services[0].metrics.counter(f"handler_refusals.{reason}")
        sent = await hostile.make(VOTE, vote, audience="service.consensus")
        await hostile.send(CONSENSUS_VOTE.at(decision=decision.hex()), sent)
        name = f"handler_refusals.{reason}"
        await eventually(lambda name=name, before=before: services[0].metrics.counter(name) > before)  # type: ignore[misc]
    for host in fleet.hosts:
        await host.ballot(0)
    assert (await fleet.outcome(decision)).outcome is Outcome.DECIDED


async def test_instances_decide_many_at_once(fleet: Fleet) -> None:
    services = [await fleet.start(i) for i in FOUR]
    await begin(fleet, services)
    decisions = []
    for _ in range(8):
        decisions.append(await fleet.propose())
        await asyncio.gather(*(host.ballot(0) for host in fleet.hosts))
    for decision in decisions:
        assert (await fleet.outcome(decision)).outcome is Outcome.DECIDED
    assert all(len(values) == 1 for values in said(fleet).values())
