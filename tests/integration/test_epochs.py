"""Epochs that go on by themselves, over a real broker: who enrols decides along, and who is gone does not count."""

from __future__ import annotations

from epochs_support import republic_in
from support import World, eventually

from tocsin.contracts.decisions import Outcome
from tocsin.evidence.certificate import DecisionCertificate
from tocsin.evidence.verification import verify


async def test_who_enrols_decides_in_the_next_epoch_and_who_is_gone_not_in_the_one_after(world: World) -> None:
    async with republic_in(world) as republic:
        first = await republic.reached(0)
        late = await republic.enrol("late")
        second = await republic.reached(1)
        assert not second.is_checkpoint
        assert second.epoch.previous == first.digest
        assert second.seats.keys() - first.seats.keys() == {str(late.agents["s-late"].id)}

        decision = (await republic.propose(second)).leaf
        announced = await republic.outcome(decision)
        assert (announced.outcome, announced.participants) == (Outcome.DECIDED, 22)
        bundle = await republic.proof(decision)
        verified = verify(bundle, republic.root_pem)
        assert (verified.epoch, verified.participants, verified.decision) == (1, 22, decision)

        await late.__aexit__(None, None, None)
        third = await republic.reached(2, without=("late",))
        assert third.seats.keys() == first.seats.keys()
        decision = (await republic.propose(third, "another")).leaf
        assert (await republic.outcome(decision)).outcome is Outcome.DECIDED
        verified = verify(await republic.proof(decision), republic.root_pem)
        assert (verified.epoch, verified.participants) == (2, 21)
        assert len(DecisionCertificate.decode(await republic.cli.get_certificate(decision.hex())).chain) == 2
        latest = await republic.latest()
        assert latest is not None
        assert latest.digest == third.digest
        await eventually(lambda: republic.service.elector.epoch is not None)
