"""Instances killed with SIGKILL while an epoch is decided: one next epoch comes of it, for all."""

from __future__ import annotations

import time

import pytest
from consensus_fleet import Fleet
from consensus_processes import (
    INSTANCES,
    all_ready,
    assert_each_step_was_signed_once,
    processes,
)
from support import DOMAIN, World, eventually

from tocsin.agent.epochs import EpochReader, fetch_proof
from tocsin.agent.roles.admin import proposal_of_epoch
from tocsin.contracts.catalogue import CONSENSUS_PROPOSAL
from tocsin.contracts.decisions import EpochChange, Outcome, Participant, Step
from tocsin.contracts.identifiers import Role, SpiffeId
from tocsin.evidence.epochs import InstalledEpoch
from tocsin.evidence.verification import verify

WITHIN_S = 60.0


@pytest.fixture
async def fleet(world: World) -> Fleet:
    fleet = Fleet(world, INSTANCES)
    await fleet.populate(hosts=3, per_host=3)
    return fleet


async def propose_newcomer(fleet: Fleet, epoch: InstalledEpoch, number: int) -> bytes:
    """Propose that somebody sits in the next epoch who will never ballot."""
    who = SpiffeId.agent(DOMAIN, Role.HUNTER, f"new-{number}")
    seat = Participant(sender=str(who), key_id=bytes([number]) * 32, algorithm=1)
    change = EpochChange(number=number, created_ns=time.time_ns(), joined=(seat,))
    body = proposal_of_epoch(change, epoch, deadline_ms=60_000)
    fleet.proposal = await fleet.admin.make(CONSENSUS_PROPOSAL, body, audience="all")
    await fleet.deliver(fleet.proposal)
    return fleet.proposal.leaf


@pytest.mark.timeout(240)
async def test_a_leader_killed_while_an_epoch_is_decided_makes_neither_none_nor_two(fleet: Fleet) -> None:
    """After its PROPOSE, VOTE1 and VOTE2; it comes back at once, and decides along in the epoch that was made."""
    with processes(fleet) as running:
        for number in range(INSTANCES):
            running.start(number)
        await all_ready(fleet)
        await fleet.begin()
        reader = EpochReader(fleet.cli)
        epoch = await reader.latest()
        for number, step in enumerate((Step.PROPOSE, Step.VOTE1, Step.VOTE2), 1):
            assert epoch is not None
            fleet.epoch = epoch.digest
            before = len(fleet.votes)
            decision = await propose_newcomer(fleet, epoch, number)
            victim = int.from_bytes(decision[:4], "big") % INSTANCES
            name = str(fleet.instances[victim])
            for host in fleet.hosts:
                await host.ballot(0)

            def taken(name: str = name, step: Step = step, before: int = before) -> bool:
                said = zip(fleet.votes[before:], fleet.voters[before:], strict=True)
                return any(vote.step is step and who == name for (vote, _), who in said)

            await eventually(taken, within_s=WITHIN_S)
            running.kill(victim)
            running.start(victim)
            announced = await fleet.outcome(decision, within_s=WITHIN_S)
            assert announced.outcome is Outcome.DECIDED
            await all_ready(fleet)
            epoch = await reader.latest()
            assert epoch is not None
            assert (epoch.epoch.number, epoch.chain[-1]) == (number, decision)
        assert epoch is not None
        fleet.epoch = epoch.digest
        decision = await fleet.propose(deadline_ms=60_000)
        for host in fleet.hosts:
            await host.ballot(1)
        assert (await fleet.outcome(decision, within_s=WITHIN_S)).outcome is Outcome.DECIDED
        proof = await fetch_proof(fleet.cli, decision)
        verified = verify(proof, fleet.world.authority.certificate_pem)
        assert (verified.epoch, verified.chain, verified.participants) == (3, 3, 13)
        assert_each_step_was_signed_once(fleet)
