"""A decision's result reaches every participant with proof of delivery, closed ones included."""

from __future__ import annotations

import asyncio
import time

import pytest
from council import DENY, proposal_body
from epochs_support import Republic, republic_in
from fleet_support import Recorder
from support import World

from tocsin.cli.results import delivery_of
from tocsin.consensus.notifying import Notifier
from tocsin.contracts.decisions import Option, Outcome
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


async def accounted(republic: Republic, decision: bytes) -> Delivery:
    since_ns = time.time_ns() - 60_000_000_000
    async with asyncio.timeout(30):
        while (found := await delivery_of(republic.cli, decision, since_ns=since_ns)) is None:
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
            dying.setattr(Notifier, "notify", lambda *_: None)
            decision = (await republic.propose(epoch)).leaf
            await republic.outcome(decision)
            await republic.instances[0].stop()
        assert await delivery_of(republic.cli, decision, since_ns=time.time_ns() - 60_000_000_000) is None
        republic.instances[0] = await republic.start_instance(0)
        republic.fleet.stack.push_async_callback(republic.instances[0].stop)
        assert (await accounted(republic, decision)).delivered == SEATS
