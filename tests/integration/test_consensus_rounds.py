"""Rounds over a real broker: split votes are refined and asked again, whoever is killed between two rounds."""

from __future__ import annotations

import asyncio

import pytest
from consensus_fleet import Fleet
from council import DENY, OPTIONS
from support import World, eventually

from tocsin.consensus.service import ConsensusService
from tocsin.contracts.catalogue import CONSENSUS_ROUND, ROUND_OPENED
from tocsin.contracts.decisions import Option, Outcome
from tocsin.evidence.verification import verify

FOUR = range(4)
LIMIT = Option(name="limit", command=DENY.model_copy(update={"duration_s": 60}), text="Block it for a minute")
WATCH = Option(name="watch", command=None, text="Watch it")
THREE = (*OPTIONS, LIMIT)
EVEN: list[str | Option | None] = ["deny", "deny", "wait", "wait"]
"""What the admin's host and the others choose: four for one, six for the other, seven are needed."""


@pytest.fixture
async def fleet(world: World) -> Fleet:
    """An admin and three hosts of three agents, and four instances: n = 10, f = 3, q = 7; m = 4, Q = 3."""
    fleet = Fleet(world, instances=4)
    await fleet.populate(hosts=3, per_host=3)
    return fleet


async def begin(fleet: Fleet, services: list[ConsensusService]) -> None:
    await fleet.begin()
    await eventually(lambda: all(s.protocol.epoch is not None for s in services))


async def halt(service: ConsensusService) -> None:
    await service.stop()
    await service.bus.__aexit__(None, None, None)


async def split(fleet: Fleet, decision: bytes, round_number: int, choices: list[str | Option | None]) -> None:
    """Let each host ballot for something else, the admin for the first."""
    question = await fleet.asked(decision, round_number)
    await asyncio.gather(
        *(host.ballot_in(question, choice) for host, choice in zip(fleet.hosts, choices, strict=True))
    )


async def test_a_split_vote_is_refined_and_decided_in_the_second_round(fleet: Fleet) -> None:
    services = [await fleet.start(i) for i in FOUR]
    await begin(fleet, services)
    decision = await fleet.propose(rounds=3, options=THREE, deadline_ms=60_000)
    await split(fleet, decision, 1, ["limit", "deny", "wait", "limit"])
    question = await fleet.asked(decision, 2)
    # The least supported goes, what does nothing stays, the leading one stands first.
    assert [option.name for option in question.options] == ["limit", "wait"]
    await split(fleet, decision, 2, ["limit", "limit", "wait", "limit"])
    announced = await fleet.outcome(decision)
    assert (announced.outcome, announced.round, announced.option) == (Outcome.DECIDED, 2, LIMIT)
    data = await fleet.cli.get_certificate(announced.object_name or "")
    decided = verify(data, fleet.world.authority.certificate_pem)
    assert (decided.round, decided.option) == (2, LIMIT)
    await eventually(lambda: not any(s.protocol.busy for s in services), within_s=30)
    assert len(fleet.announced) == 1


async def test_a_counter_proposal_comes_in_and_is_decided(fleet: Fleet) -> None:
    services = [await fleet.start(i) for i in FOUR]
    await begin(fleet, services)
    decision = await fleet.propose(rounds=3, deadline_ms=60_000)
    await split(fleet, decision, 1, [WATCH, WATCH, "wait", "deny"])
    question = await fleet.asked(decision, 2)
    assert question.options[0] == WATCH
    await split(fleet, decision, 2, ["watch"] * 4)
    announced = await fleet.outcome(decision)
    assert (announced.outcome, announced.round, announced.option) == (Outcome.DECIDED, 2, WATCH)


async def test_who_cannot_agree_closes_in_the_last_round(fleet: Fleet) -> None:
    services = [await fleet.start(i) for i in FOUR]
    await begin(fleet, services)
    decision = await fleet.propose(rounds=3, deadline_ms=60_000)
    for number in (1, 2, 3):
        await split(fleet, decision, number, EVEN)
    announced = await fleet.outcome(decision)
    assert (announced.outcome, announced.round, announced.certificate) == (Outcome.CLOSED, 3, None)
    assert (announced.ballots_for, announced.ballots_received) == (6, 10)


async def test_silence_ends_with_the_last_deadline(fleet: Fleet) -> None:
    services = [await fleet.start(i) for i in FOUR]
    await begin(fleet, services)
    decision = await fleet.propose(rounds=2, deadline_ms=300)
    announced = await fleet.outcome(decision)
    assert (announced.outcome, announced.round) == (Outcome.INSUFFICIENT, 2)
    assert announced.ballots_received == 0


async def test_an_instance_that_was_away_is_brought_to_the_round_that_the_others_are_in(fleet: Fleet) -> None:
    """It takes part in round 2 though it has seen neither the proposal, nor a ballot or step of round 1."""
    services = [await fleet.start(i) for i in FOUR]
    await begin(fleet, services)
    await halt(services[3])
    decision = await fleet.propose(rounds=3, deadline_ms=60_000)
    await split(fleet, decision, 1, EVEN)
    await fleet.asked(decision, 2)
    await halt(services[0])
    late = await fleet.start(3)
    await split(fleet, decision, 2, ["wait"] * 4)
    announced = await fleet.outcome(decision, within_s=40)
    assert (announced.outcome, announced.round) == (Outcome.DECIDED, 2)
    data = await fleet.cli.get_certificate(announced.object_name or "")
    assert str(fleet.instances[3]) in verify(data, fleet.world.authority.certificate_pem).instances
    assert late.metrics.counter("asked") >= 1


async def test_all_instances_restarted_between_two_rounds_go_on_in_the_second(fleet: Fleet) -> None:
    services = [await fleet.start(i) for i in FOUR]
    await begin(fleet, services)
    decision = await fleet.propose(rounds=3, deadline_ms=60_000)
    await split(fleet, decision, 1, EVEN)
    await fleet.asked(decision, 2)
    await eventually(lambda: all(s.metrics.counter("rounds_begun") == 1 for s in services))
    for service in services:
        await halt(service)
    again = [await fleet.start(i) for i in FOUR]
    await eventually(lambda: all(s.protocol.lacks_round(decision, 3) for s in again))
    assert not any(s.protocol.lacks_round(decision, 2) for s in again)
    await split(fleet, decision, 2, ["wait"] * 4)
    announced = await fleet.outcome(decision, within_s=40)
    assert (announced.outcome, announced.round) == (Outcome.DECIDED, 2)


async def test_agents_are_told_again_until_they_have_balloted(fleet: Fleet) -> None:
    services = [await fleet.start(i, step_in_s=0.1) for i in FOUR]
    await begin(fleet, services)
    decision = await fleet.propose(rounds=2, deadline_ms=60_000)
    await split(fleet, decision, 1, EVEN)
    question = await fleet.asked(decision, 2)
    host = fleet.hosts[1]
    await eventually(lambda: len(set(host.tellers)) >= 2)
    await split(fleet, decision, 2, ["wait"] * 4)
    assert (await fleet.outcome(decision)).outcome is Outcome.DECIDED
    assert {opened.options for opened in host.opened} == {question.options}


async def test_one_instance_alone_goes_through_rounds(world: World) -> None:
    fleet = Fleet(world)
    await fleet.populate(hosts=3, per_host=3)
    await fleet.start()
    await fleet.begin()
    decision = await fleet.propose(rounds=10, deadline_ms=60_000)
    for number in range(1, 10):
        await split(fleet, decision, number, EVEN)
    await split(fleet, decision, 10, ["wait"] * 4)
    announced = await fleet.outcome(decision)
    assert (announced.outcome, announced.round) == (Outcome.DECIDED, 10)


async def test_a_round_that_was_not_committed_moves_no_instance(fleet: Fleet) -> None:
    """A hostile instance shows the commit of one list of options, and says that it named another."""
    services = [await fleet.start(i) for i in FOUR]
    await begin(fleet, services)
    decision = await fleet.propose(rounds=3, deadline_ms=60_000)
    await split(fleet, decision, 1, EVEN)
    question = await fleet.asked(decision, 2)
    true = fleet.hosts[0].opened[0]
    liar = await fleet.world.bus(credentials=fleet.credentials[2])
    for change in ({"options": true.options[::-1], "round": 3}, {"round": 3}, {"epoch": bytes(32)}):
        body = true.model_copy(update=change)
        await liar.publish(CONSENSUS_ROUND, ROUND_OPENED, body, audience="all", at={"decision": decision.hex()})
    for reason in ("bad_quorum_cert", "unknown_epoch"):
        await eventually(lambda reason=reason: services[0].metrics.counter(f"handler_refusals.{reason}") >= 1)  # type: ignore[misc]
    await asyncio.gather(*(host.ballot_in(question, "wait") for host in fleet.hosts))
    assert (await fleet.outcome(decision)).round == 2
