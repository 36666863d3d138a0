"""Epochs that go on by themselves, over a real broker: who enrols decides along, and who is gone does not count."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from council import ballot_body, proposal_body
from epochs_support import Republic, republic_in
from support import DOMAIN, World, eventually

from tocsin.agent.roles.admin import proposal_of_epoch
from tocsin.consensus.service import ConsensusService
from tocsin.contracts.catalogue import BALLOT, CONSENSUS_BALLOT, CONSENSUS_EPOCHS, DELIVER_ALL, EPOCH_DECIDED
from tocsin.contracts.decisions import (
    DecisionAnnounced,
    EpochChange,
    EpochDecided,
    Outcome,
    Participant,
    Removal,
    RemovalCause,
)
from tocsin.contracts.identifiers import Role, ServiceName, SpiffeId
from tocsin.crypto import LocalKey
from tocsin.evidence.certificate import DecisionCertificate
from tocsin.evidence.epochs import InstalledEpoch, Passage
from tocsin.evidence.succession import allowance
from tocsin.evidence.verification import verify

NOBODY_ASKS = {"epoch_quiet_s": 3_600.0}
"""Fleet wishes for nothing while a test proposes itself."""


async def decide(republic: Republic, epoch: InstalledEpoch, subject: str) -> DecisionAnnounced:
    """Have something decided in an epoch, and verify it with the root alone."""
    decision = (await republic.propose(epoch, subject)).leaf
    announced = await republic.outcome(decision)
    assert announced.outcome is Outcome.DECIDED
    verified = verify(await republic.proof(decision), republic.root_pem)
    assert (verified.epoch, verified.decision) == (epoch.epoch.number, decision)
    assert verified.participants == announced.participants == len(epoch.seats)
    return announced


async def halt(service: ConsensusService) -> None:
    await service.stop()
    await service.bus.__aexit__(None, None, None)


async def test_who_enrols_decides_in_the_next_epoch_and_who_is_gone_not_in_the_one_after(world: World) -> None:
    async with republic_in(world) as republic:
        first = await republic.reached(0)
        late = await republic.enrol("late")
        second = await republic.reached(1)
        assert not second.is_checkpoint
        assert second.epoch.previous == first.digest
        assert second.seats.keys() - first.seats.keys() == {str(late.agents["s-late"].id)}
        await decide(republic, second, "with the newcomer")
        await decide(republic, first, "by who had not heard of it")

        await late.__aexit__(None, None, None)
        third = await republic.reached(2, without=("late",))
        assert third.seats.keys() == first.seats.keys()
        announced = await decide(republic, third, "without it")
        certificate = await republic.cli.get_certificate(announced.decision.hex())
        assert len(DecisionCertificate.decode(certificate).chain) == 2


async def test_who_is_quarantined_has_no_seat_in_the_next_epoch_and_gets_it_back_when_released(
    world: World,
) -> None:
    async with republic_in(world, epoch_absent_after_s=3_600) as republic:
        first = await republic.reached(0)
        await republic.service.standing.quarantine(["s-1-0"], "it lies", by="cli.0")
        second = await republic.reached(1)
        assert {seat.rpartition("/")[2] for seat in first.seats.keys() - second.seats.keys()} == {"s-1-0"}
        await republic.service.standing.release(["s-1-0"], "it does not", by="cli.0")
        third = await republic.reached(2)
        assert third.seats == first.seats


async def test_who_votes_twice_loses_its_seat_by_a_proof_that_anyone_can_check(world: World) -> None:
    async with republic_in(world, epoch_absent_after_s=3_600) as republic:
        first = await republic.reached(0)
        host = republic.hosts["h1"]
        liar = host.agents["s-1-3"].id
        sent = await republic.make(proposal_body(first.digest))
        # Before the proposal: they are held, and compared when it comes.
        for option in (0, 1):
            ballot = await host._bus.make(
                BALLOT,
                ballot_body(first.digest, sent.leaf, option),
                audience="service.consensus",
                sender=liar,
            )
            await host._bus.send(CONSENSUS_BALLOT.at(decision=sent.leaf.hex(), agent=liar.name), ballot)
        await republic.cli.send(DELIVER_ALL.at(), sent)
        second = await republic.reached(1)
        assert first.seats.keys() - second.seats.keys() == {str(liar)}
        assert allowance(second, time.time_ns()) == 1, "a proof costs nothing of the daily share"
        await decide(republic, second, "without the liar")


async def test_the_second_that_is_gone_on_one_day_keeps_its_seat(world: World) -> None:
    async with republic_in(world, epoch_absent_after_s=3_600) as republic:
        await republic.reached(0)
        await republic.service.standing.quarantine(["s-1-0"], "it lies", by="cli.0")
        second = await republic.reached(1)
        await republic.service.standing.quarantine(["s-1-1"], "it lies, too", by="cli.0")
        await eventually(lambda: republic.service.bus.standings.is_quarantined("s-1-1"))
        assert republic.service.elector.wished(second, time.time_ns()) is None
        await decide(republic, second, "all the same")


async def test_agents_refuse_what_breaks_the_rule_and_instances_do_not_even_ask(world: World) -> None:
    async with republic_in(world, **NOBODY_ASKS) as republic:
        epoch = await republic.reached(0)
        stranger = SpiffeId.agent(DOMAIN, Role.SENTINEL, "s-stranger")
        key = LocalKey.generate(world.backend)
        change = EpochChange(
            number=1,
            created_ns=time.time_ns(),
            joined=(Participant(sender=str(stranger), key_id=key.signer.key_id, algorithm=int(key.algorithm)),),
        )
        sent = await republic.send(proposal_of_epoch(change, epoch))
        announced = await republic.outcome(sent.leaf)
        assert announced.option is not None
        assert announced.option.name == "keep", "nobody has certified its key"

        late = change.model_copy(update={"created_ns": time.time_ns() + 3_600_000_000_000})
        sent = await republic.send(proposal_of_epoch(late, epoch))
        announced = await republic.outcome(sent.leaf)
        assert announced.option is not None
        assert announced.option.name == "keep", "it is not of now"

        others = [seat for seat in epoch.seats if "/s-2-" in seat][:2]
        many = change.model_copy(
            update={
                "joined": (),
                "removed": tuple(Removal(sender=one, cause=RemovalCause.ABSENT) for one in others),
            }
        )
        generous = replace(epoch, passages=(Passage(epoch.epoch.created_ns, 1_000, 0),))
        await republic.send(proposal_of_epoch(many, generous))
        hosts = republic.hosts.values()
        reason = "epochs_refused.too_many_removals"
        await eventually(lambda: all(host.metrics.counter(reason) > 0 for host in hosts))
        refusals = [one.metrics.counter("handler_failures.too_many_removals") for one in republic.instances]
        assert all(one.protocol.open_decisions == 0 for one in republic.instances), refusals
        assert republic.instances[0].protocol.epoch is not None
        assert republic.instances[0].protocol.epoch.epoch.number == 0


async def test_who_was_away_catches_up_over_several_epochs(world: World) -> None:
    async with republic_in(world, epoch_absent_after_s=3_600) as republic:
        first = await republic.reached(0)
        away = republic.instances.pop()
        await halt(away)
        for number, host in enumerate(("late", "later"), 1):
            await republic.enrol(host)
            last = await republic.reached(number)
        back = await republic.start_instance(3)
        republic.instances.append(back)
        assert await republic.reached(2) == last
        assert back.protocol.known_epoch(first.digest) is not None
        latest = await republic.enrol("latest")
        after = await republic.reached(3)
        assert str(latest.agents["s-latest"].id) in after.seats
        assert len(after.chain) == 3
        await decide(republic, after, "with all")
        await halt(back)
        again = await republic.start_instance(3)
        republic.instances[-1] = again
        assert await republic.reached(3) == after, "from its own log"
        await halt(again)


async def test_an_instance_that_lost_its_log_takes_part_again_from_the_next_epoch_on(world: World) -> None:
    async with republic_in(world, epoch_absent_after_s=3_600) as republic:
        await republic.reached(0)
        await republic.service.standing.quarantine(["s-1-0"], "for a while", by="cli.0")
        await republic.reached(1)
        await halt(republic.instances.pop())
        (world.folder / "consensus" / "consensus-3.votes").unlink()
        forgetful = await republic.start_instance(3)
        assert forgetful.protocol.epoch is None
        republic.instances.append(forgetful)
        await republic.service.standing.release(["s-1-0"], "for a while", by="cli.0")
        epoch = await republic.reached(2)
        await decide(republic, epoch, "with four again")
        await halt(forgetful)


async def test_a_checkpoint_by_the_root_cuts_the_chain(world: World) -> None:
    async with republic_in(world, epoch_absent_after_s=3_600) as republic:
        await republic.reached(0)
        await republic.enrol("late")
        decided = await republic.reached(1)
        assert len(decided.chain) == 1
        await republic.install(republic.record(2))
        epoch = await republic.reached(2)
        assert epoch.is_checkpoint
        assert epoch.seats == decided.seats
        announced = await decide(republic, epoch, "on the root's word")
        data = await republic.cli.get_certificate(announced.decision.hex())
        assert verify(data, republic.root_pem).epoch == 2, "it needs no links"


async def test_who_has_missed_an_epoch_looks_for_it_when_somebody_speaks_of_it(world: World) -> None:
    async with republic_in(world, epoch_absent_after_s=3_600) as republic:
        first = await republic.reached(0)
        await republic.enrol("late")
        second = await republic.reached(1)
        # As if the message had been lost on its way to a host and an instance.
        republic.hosts["h1"]._epochs.epoch = first
        forgetful = republic.instances[3].protocol
        forgetful.epoch, forgetful._floor = first, 0
        forgetful._known.pop(second.digest)
        republic.hosts["h1"]._epochs.reader._known.pop(second.digest)
        announced = await decide(republic, second, "with all")
        assert announced.ballots_received >= announced.quorum
        await eventually(lambda: republic.hosts["h1"].epoch == second)
        await eventually(lambda: forgetful.epoch == second)


@pytest.mark.parametrize("lie", ["another_decision", "no_decision", "a_number_too_high"])
async def test_an_instance_that_lies_about_an_epoch_is_not_believed(world: World, lie: str) -> None:
    async with republic_in(world, epoch_absent_after_s=3_600) as republic:
        first = await republic.reached(0)
        ordinary = await decide(republic, first, "no epoch at all")
        await republic.enrol("late")
        second = await republic.reached(1)
        told = EpochDecided(number=9, epoch=bytes([9]) * 32, previous=second.digest, decision=second.chain[-1])
        if lie == "another_decision":
            told = told.model_copy(update={"previous": first.digest, "decision": ordinary.decision})
        elif lie == "no_decision":
            told = told.model_copy(update={"decision": bytes(32)})
        liar = await world.service(ServiceName.CONSENSUS, "9")
        sent = await liar.make(EPOCH_DECIDED, told, audience="service.consensus")
        await liar.send(CONSENSUS_EPOCHS.at(number="9"), sent, stream="DECISIONS")
        latest = await republic.latest()
        assert latest is not None
        assert latest.digest == second.digest
        assert all(host.epoch == second for host in republic.hosts.values())
