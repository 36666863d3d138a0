"""Four consensus instances, each a process of its own, killed with SIGKILL in the middle of a decision."""

from __future__ import annotations

import pytest
from consensus_fleet import Fleet
from consensus_processes import (
    INSTANCES,
    all_ready,
    assert_each_step_was_signed_once,
    processes,
)
from support import World, eventually

from tocsin.contracts.decisions import Outcome, Step
from tocsin.evidence.verification import verify

WITHIN_S = 60.0


def steps_of(fleet: Fleet, instance: str) -> list[Step]:
    return [vote.step for (vote, _), who in zip(fleet.votes, fleet.voters, strict=True) if who == instance]


async def decided(fleet: Fleet, decision: bytes) -> None:
    announced = await fleet.outcome(decision, within_s=WITHIN_S)
    assert announced.outcome is Outcome.DECIDED
    assert {a.outcome for a in fleet.announced if a.decision == decision} == {Outcome.DECIDED}
    data = await fleet.cli.get_certificate(announced.object_name or "")
    assert verify(data, fleet.world.authority.certificate_pem).decision == decision


@pytest.fixture
async def fleet(world: World) -> Fleet:
    fleet = Fleet(world, INSTANCES)
    await fleet.populate(hosts=3, per_host=3)
    return fleet


@pytest.mark.timeout(240)
async def test_instances_killed_at_each_step_of_a_decision_sign_nothing_twice(fleet: Fleet) -> None:
    """The leader after its PROPOSE, VOTE1 and VOTE2, then another one after its VOTE1; each comes back at once."""
    with processes(fleet) as running:
        for number in range(INSTANCES):
            running.start(number)
        await all_ready(fleet)
        await fleet.begin()
        for step, of_leader in (
            (Step.PROPOSE, True),
            (Step.VOTE1, True),
            (Step.VOTE2, True),
            (Step.VOTE1, False),
        ):
            decision = await fleet.propose(deadline_ms=60_000)
            leader = int.from_bytes(decision[:4], "big") % INSTANCES
            victim = leader if of_leader else (leader + 1) % INSTANCES
            name, before = str(fleet.instances[victim]), len(fleet.votes)
            for host in fleet.hosts:
                await host.ballot(0)

            def taken(name: str = name, step: Step = step, before: int = before) -> bool:
                said = zip(fleet.votes[before:], fleet.voters[before:], strict=True)
                return any(vote.step is step and who == name for (vote, _), who in said)

            await eventually(taken, within_s=WITHIN_S)
            running.kill(victim)
            running.start(victim)
            await decided(fleet, decision)
            await all_ready(fleet)
        assert_each_step_was_signed_once(fleet)


@pytest.mark.timeout(240)
async def test_instances_killed_between_two_rounds_go_on_in_the_second(fleet: Fleet) -> None:
    """All are killed as soon as agents are told of round 2; another time the one that told them."""
    with processes(fleet) as running:
        for number in range(INSTANCES):
            running.start(number)
        await all_ready(fleet)
        await fleet.begin()
        for victims in (range(INSTANCES), None):
            decision = await fleet.propose(deadline_ms=60_000, rounds=3)
            first = await fleet.asked(decision, 1)
            for host, choice in zip(fleet.hosts, ("deny", "deny", "wait", "wait"), strict=True):
                await host.ballot_in(first, choice)
            second = await fleet.asked(decision, 2, within_s=WITHIN_S)
            teller = list(map(str, fleet.instances)).index(fleet.hosts[0].tellers[-1])
            for number in victims or (teller,):
                running.kill(number)
            for number in victims or (teller,):
                running.start(number)
            await all_ready(fleet)
            # Ballots that nobody was there to hear are sent again, as after any loss.
            for host in fleet.hosts:
                await host.ballot_in(second, "wait")
            announced = await fleet.outcome(decision, within_s=WITHIN_S)
            assert (announced.outcome, announced.round) == (Outcome.DECIDED, 2)
            await decided(fleet, decision)
        assert_each_step_was_signed_once(fleet)


@pytest.mark.timeout(240)
async def test_all_instances_killed_and_the_broker_restarted_midway(fleet: Fleet) -> None:
    """Two instances alone vote and time out; then everything dies, and four come back from their logs."""
    with processes(fleet) as running:
        for number in range(INSTANCES):
            running.start(number)
        await all_ready(fleet)
        await fleet.begin()
        decision = await fleet.propose(deadline_ms=60_000)
        for number in (2, 3):
            running.kill(number)
        for host in fleet.hosts:
            await host.ballot(0)
        await eventually(lambda: any(v.step is Step.TIMEOUT for v, _ in fleet.votes), within_s=WITHIN_S)
        running.end()
        fleet.world.restart_broker()
        for number in range(INSTANCES):
            running.start(number)
        await all_ready(fleet)
        # Whatever came of it: agents and the proposer send again what they sent, until it is announced.
        await fleet.deliver(fleet.proposal)
        for host in fleet.hosts:
            await host.ballot(0)
        await decided(fleet, decision)
        assert_each_step_was_signed_once(fleet)
