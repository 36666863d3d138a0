"""A decision's result reaches every participant with proof of delivery, closed ones included."""

from __future__ import annotations

import asyncio
import time

import pytest
from council import DENY, proposal_body
from epochs_support import Republic, republic_in
from fleet_support import Recorder
from support import World, eventually

from tocsin.cli.results import delivery_of
from tocsin.consensus import announcing, carrying
from tocsin.consensus.notifying import Notifier
from tocsin.contracts.catalogue import CONSENSUS_DECISION, DECISION, DECISION_RESULT, DELIVER_ALL
from tocsin.contracts.decisions import MAX_MISSING, DecisionAnnounced, Option, Outcome
from tocsin.contracts.identifiers import Priority
from tocsin.contracts.response import Action, Command
from tocsin.contracts.routing import Delivery

SEATS = 21
NOTHING_TO_CHOOSE = (
    Option(name="deny", command=DENY, text="Block it"),
    Option(
        name="contain",
        command=Command(action=Action.CONTAIN, address="192.0.2.7", duration_s=60),
        text="Isolate it",
    ),
)
"""Nobody was warned about either, and doing nothing is no option: agents abstain."""


async def accounted(republic: Republic, decision: bytes, ended: DecisionAnnounced | None = None) -> Delivery:
    since_ns = time.time_ns() - 60_000_000_000
    ended = ended or await republic.outcome(decision)
    async with asyncio.timeout(30):
        while (found := await delivery_of(republic.cli, ended, since_ns=since_ns)) is None:
            await asyncio.sleep(0.1)
    return found


async def test_a_result_is_confirmed_by_every_participant_and_heard_once(world: World) -> None:
    async with republic_in(world) as republic:
        epoch = await republic.reached(0)
        decided = await republic.propose(epoch)
        body = proposal_body(epoch.digest, deadline_ms=500)
        closed = await republic.send(body.model_copy(update={"options": NOTHING_TO_CHOOSE, "rounds": 1}))
        assert (await republic.outcome(decided.leaf)).outcome is Outcome.DECIDED
        assert (await republic.outcome(closed.leaf)).outcome is not Outcome.DECIDED
        for sent in (decided, closed):
            account = await accounted(republic, sent.leaf)
            assert account.complete
            assert (account.due, account.delivered, account.undelivered) == (SEATS, SEATS, ())
        for host in republic.hosts.values():
            for agent in host.agents.values():
                if isinstance(agent, Recorder):
                    heard = sorted(one.decision for one in agent.decisions)
                    assert heard == sorted((decided.leaf, closed.leaf))


async def test_an_instance_that_lies_is_heard_by_nobody_and_silences_nobody(world: World) -> None:
    """It is first, on both channels and in the stream; three of four are honest."""
    async with republic_in(world) as republic:
        epoch = await republic.reached(0)
        liar = republic.instances[0].bus
        body = proposal_body(epoch.digest, deadline_ms=20_000)
        sent = await republic.make(body.model_copy(update={"options": NOTHING_TO_CHOOSE, "rounds": 1}))
        model = await republic.send(body)
        true = await republic.outcome(model.leaf)
        lie = true.model_copy(
            update={"decision": sent.leaf, "proposal": sent.data, "option": NOTHING_TO_CHOOSE[0]}
        )
        result = await liar.make(DECISION_RESULT, lie, audience="all", priority=Priority.CRITICAL)
        await liar.emergency(result, liar.id, timeout_s=10, kind=DECISION_RESULT)
        at = {"decision": sent.leaf.hex()}
        await liar.publish(CONSENSUS_DECISION, DECISION, lie, durable=True, at=at)
        hosts = [republic.hosts[name] for name in ("h1", "h2")]
        await eventually(lambda: all(h.metrics.counter("rejected.bad_quorum_cert") >= 1 for h in hosts))
        await eventually(lambda: all(h.metrics.counter("handler_refusals.bad_quorum_cert") >= 1 for h in hosts))
        await republic.cli.send(DELIVER_ALL.at(), sent)

        def true_ends() -> list[DecisionAnnounced]:
            told = [one for one in republic.announced if one.decision == sent.leaf]
            return [one for one in told if one.outcome is not Outcome.DECIDED]

        await eventually(lambda: bool(true_ends()))
        account = await accounted(republic, sent.leaf, true_ends()[0])
        assert (account.due, account.delivered) == (SEATS, SEATS)
        heard = [a.decisions for h in hosts for a in h.agents.values() if isinstance(a, Recorder)]
        assert len(heard) == 16
        for decisions in heard:
            (end,) = [one for one in decisions if one.decision == sent.leaf]
            assert end.outcome is not Outcome.DECIDED


async def test_a_result_as_large_as_they_come_is_delivered(world: World) -> None:
    async with republic_in(world) as republic:
        epoch = await republic.reached(0)
        long = tuple(f"{i:04}-{'x' * 58}" for i in range(MAX_MISSING))
        make = announcing.announcement

        def with_many_missing(*args: object) -> DecisionAnnounced:
            return make(*args).model_copy(update={"missing": long})  # type: ignore[arg-type]  # as it is called

        body = proposal_body(epoch.digest).model_copy(update={"evidence": ("x" * 512,) * 31})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(carrying, "announcement", with_many_missing)
            decision = (await republic.send(body)).leaf
            announced = await republic.outcome(decision)
            assert (await accounted(republic, decision)).delivered == SEATS
        assert announced.missing == long


async def test_while_no_router_runs_a_result_waits_and_is_sent_once(world: World) -> None:
    async with republic_in(world) as republic:
        epoch = await republic.reached(0)
        await republic.router.stop()
        await republic.router.bus.__aexit__(None, None, None)  # all of its connections, as its process would
        decision = (await republic.propose(epoch)).leaf
        await republic.outcome(decision)
        sent = [one.metrics for one in republic.instances]
        await eventually(
            lambda: sum(m.counter("results_not_taken.no_answer") > 0 for m in sent) > 1, within_s=20
        )
        republic.router = await republic.start_router("1")
        assert (await accounted(republic, decision)).delivered == SEATS

        def settled() -> bool:
            return sum(m.counter(f"results_{how}") for m in sent for how in ("sent", "of_others")) == 4

        await eventually(settled, within_s=60)
        # Two can ask in the very moment in which the router comes; those that wait then ask no more.
        assert sum(m.counter("results_sent") for m in sent) < 4


async def test_who_is_gone_is_named(world: World) -> None:
    async with republic_in(world, epoch_absent_after_s=600) as republic:
        epoch = await republic.reached(0)
        await republic.hosts["h2"].__aexit__(None, None, None)
        decision = (await republic.propose(epoch)).leaf
        await republic.outcome(decision)
        account = await accounted(republic, decision)
        assert not account.complete
        assert set(account.undelivered) == {f"s-2-{i}" for i in range(8)}


async def test_a_result_that_its_instance_did_not_live_to_send_is_sent_by_another(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with republic_in(world) as republic:
        epoch = await republic.reached(0)
        with monkeypatch.context() as dying:
            dying.setattr(Notifier, "notify", lambda *_, **__: None)
            decision = (await republic.propose(epoch)).leaf
            ended = await republic.outcome(decision)
            await republic.instances[0].stop()
        assert await delivery_of(republic.cli, ended, since_ns=time.time_ns() - 60_000_000_000) is None
        republic.instances[0] = await republic.start_instance(0)
        republic.fleet.stack.push_async_callback(republic.instances[0].stop)
        assert (await accounted(republic, decision)).delivered == SEATS
