"""What is lost on the way to the instances, or to the agents, is asked for and comes: the decision is made in time."""

from __future__ import annotations

from typing import Any

import pytest
from council import proposal_body
from epochs_support import republic_in
from support import World

from tocsin.agent.ballots import BallotCaster
from tocsin.agent.delivery import Delivery
from tocsin.bus import Context, Sent
from tocsin.contracts.base import Message
from tocsin.contracts.decisions import Outcome, Proposal
from tocsin.contracts.identifiers import SpiffeId


async def test_ballots_that_were_lost_are_sent_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    send, lost = BallotCaster._send, set[SpiffeId]()

    async def lose(caster: BallotCaster, agent: SpiffeId, decision: bytes, sent: Sent) -> Sent:
        if agent in lost:
            return await send(caster, agent, decision, sent)
        lost.add(agent)
        return sent

    async with republic_in(world) as republic:
        epoch = await republic.reached(0)
        monkeypatch.setattr(BallotCaster, "_send", lose)
        sent = await republic.send(proposal_body(epoch.digest, deadline_ms=30_000))
        ended = await republic.outcome(sent.leaf)
        assert ended.outcome is Outcome.DECIDED
        again = [host.metrics.counter("ballots_sent_again") for host in republic.hosts.values()]
        assert sum(again) >= ended.quorum


async def test_who_has_not_heard_the_question_hears_it_late(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    hear, deaf = Delivery.from_core, set[Any]()

    def from_core(delivery: Delivery, body: Message, context: Context) -> None:
        if isinstance(body, Proposal) and delivery not in deaf:
            deaf.add(delivery)
        else:
            hear(delivery, body, context)

    monkeypatch.setattr(Delivery, "from_core", from_core)
    async with republic_in(world) as republic:
        epoch = await republic.reached(0)
        sent = await republic.send(proposal_body(epoch.digest, deadline_ms=30_000))
        ended = await republic.outcome(sent.leaf)
        assert ended.outcome is Outcome.DECIDED
        late = [host.metrics.counter("proposals_heard_late") for host in republic.hosts.values()]
        assert len(deaf) == len(late) == sum(one > 0 for one in late)
