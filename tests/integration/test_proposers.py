"""Agents put questions to the vote through a real router: who may is heard, who may not is told and audited."""

from __future__ import annotations

import pytest
from epochs_support import Republic, republic_in
from support import World, eventually

from tocsin.agent import Agent
from tocsin.agent.asking import question_of
from tocsin.contracts.catalogue import CONSENSUS_PROPOSAL, DELIVER_ALL, EVENT
from tocsin.contracts.decisions import Outcome, Scope
from tocsin.contracts.errors import DeniedError, InvalidInputError
from tocsin.contracts.identifiers import Priority
from tocsin.contracts.routing import Refusal

WAYS = {"north": "By the north", "south": "By the south"}
MISSION = Scope(mission="m-1", members=("s-1-0", "s-1-1", "s-1-2", "s-2-0"))


def agent(republic: Republic, name: str) -> Agent:
    return next(h.agents[name] for h in republic.hosts.values() if name in h.agents)


async def test_a_member_asks_its_mission_and_a_sentinel_asks_nobody_else(world: World) -> None:
    async with republic_in(world) as republic:
        await republic.reached(0)
        refused: list[Refusal] = []

        async def on_refusal(body: Refusal, _: object) -> None:
            refused.append(body)

        await republic.cli.subscribe(EVENT, on_refusal, at={"service": "router", "kind": "refusal"})
        member = agent(republic, "s-1-0")
        asked = await member.ask("which way?", WAYS, scope=MISSION, deadline_ms=5_000)
        ended = await republic.outcome(asked.leaf)
        # Stock agents have no grounds to choose among words: what counts here is that all four were asked.
        assert (ended.outcome, ended.participants, ended.ballots_received) == (Outcome.CLOSED, 4, 4)
        assert ended.scope == "mission m-1"
        with pytest.raises(DeniedError) as told:
            await member.ask("which way?", WAYS)
        assert told.value.reason == "proposer_not_allowed"
        with pytest.raises(InvalidInputError):
            await agent(republic, "admin-1").ask("which way?", {"north": "the only one"})
        # Its host says what it was not asked to: past the agent's own check.
        body = question_of(member.host.epoch.digest, "which way?", WAYS)  # type: ignore[union-attr]  # it has one
        await member.send(CONSENSUS_PROPOSAL, body, audience="all", priority=Priority.HIGH)
        await eventually(lambda: [one.reason for one in refused] == ["proposer_not_allowed"])
        hosts = list(republic.hosts.values())
        sent = await hosts[1]._bus.make(CONSENSUS_PROPOSAL, body, audience="all", sender=member.id)
        await republic.cli.send(DELIVER_ALL.at(), sent)
        refusals = "rejected.proposer_not_allowed"
        await eventually(lambda: all(host.metrics.counter(refusals) >= 1 for host in hosts))
        instances = [one.metrics for one in republic.instances]
        handled = "handler_refusals.proposer_not_allowed"
        await eventually(lambda: all(one.counter(handled) >= 1 for one in instances))
