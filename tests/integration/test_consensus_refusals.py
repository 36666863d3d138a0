"""Bad input to consensus, over a real broker: each has its own reason, and good decisions are made all the same."""

from __future__ import annotations

import time
from typing import Any

import pytest
from consensus_fleet import Fleet
from council import OPTIONS, ballot_body, proposal_body
from support import DOMAIN, World, eventually

from tocsin.contracts.catalogue import BALLOT, CONSENSUS_BALLOT, CONSENSUS_PROPOSAL, DELIVER_ALL
from tocsin.contracts.decisions import Option, Outcome, Scope
from tocsin.contracts.identifiers import Role, SpiffeId
from tocsin.evidence.choices import choice_digest
from tocsin.evidence.verification import verify

WORDS = (Option(name="yes", command=None, text="Yes"), Option(name="no", command=None, text="No"))


@pytest.fixture
async def fleet(world: World) -> Fleet:
    """An admin and three hosts of three agents: n = 10, f = 3, q = 7."""
    fleet = Fleet(world)
    await fleet.populate(hosts=3, per_host=3)
    return fleet


async def good_decision(fleet: Fleet) -> None:
    decision = await fleet.propose()
    for host in fleet.hosts:
        await host.ballot(0)
    assert (await fleet.outcome(decision)).outcome is Outcome.DECIDED


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"options": (WORDS[0], WORDS[0])}, "duplicate_option"),
        ({"scope": Scope(role=Role.SENTINEL)}, "committee_cannot_command"),
        ({"scope": Scope(role=Role.HUNTER), "options": WORDS}, "too_few_participants"),
        (
            {"scope": Scope(mission="m-1", members=("s-0-0", "s-0-1", "stranger")), "options": WORDS},
            "unknown_member",
        ),
        ({"scope": Scope(mission="m-1"), "options": WORDS}, "bad_scope"),
        ({"epoch": bytes(32)}, "wrong_epoch"),
    ],
)
async def test_a_proposal_that_breaks_a_rule_opens_nothing(
    fleet: Fleet, change: dict[str, Any], reason: str
) -> None:
    service = await fleet.start()
    await fleet.begin()
    body = proposal_body(fleet.epoch).model_copy(update=change)
    await fleet.admin.send(DELIVER_ALL.at(), await fleet.admin.make(CONSENSUS_PROPOSAL, body, audience="all"))
    await eventually(lambda: service.metrics.counter(f"handler_refusals.{reason}") == 1)
    assert service.protocol.open_decisions == 0
    await good_decision(fleet)


async def test_a_hunter_asks_questions_and_commands_nothing_whatever_way_it_goes(fleet: Fleet) -> None:
    hunter = await fleet.world.agent(Role.HUNTER, "hunter")
    await fleet.add_host(hunter, [hunter.id])
    service = await fleet.start()
    await fleet.begin()
    command = await hunter.make(CONSENSUS_PROPOSAL, proposal_body(fleet.epoch), audience="all")
    await hunter.send(DELIVER_ALL.at(), command)
    await eventually(lambda: service.metrics.counter("handler_refusals.proposer_not_allowed") == 1)
    assert service.protocol.open_decisions == 0
    question = await hunter.make(
        CONSENSUS_PROPOSAL, proposal_body(fleet.epoch, options=WORDS, deadline_ms=20_000), audience="all"
    )
    await fleet.deliver(question)
    for host in fleet.hosts:
        await host.ballot(1)
    ended = await fleet.outcome(question.leaf)
    assert (ended.outcome, ended.option) == (Outcome.DECIDED, WORDS[1])
    verified = verify(
        await fleet.cli.get_certificate(question.leaf.hex()), fleet.world.authority.certificate_pem
    )
    assert (verified.proposer, verified.option) == (str(hunter.id), WORDS[1])


async def test_no_counter_proposal_makes_a_hunters_question_a_command(fleet: Fleet) -> None:
    hunter = await fleet.world.agent(Role.HUNTER, "hunter")
    await fleet.add_host(hunter, [hunter.id])
    await fleet.start()
    await fleet.begin()
    body = proposal_body(fleet.epoch, options=WORDS, deadline_ms=20_000, rounds=2)
    asked = await hunter.make(CONSENSUS_PROPOSAL, body, audience="all")
    await fleet.deliver(asked)
    first = await fleet.asked(asked.leaf, 1)
    for host in fleet.hosts:
        await host.ballot_in(first, OPTIONS[0])
    second = await fleet.asked(asked.leaf, 2)
    assert {option.name for option in second.options} == {"yes", "no"}


async def test_a_proposal_comes_in_time_or_not_at_all_and_twice_is_once(fleet: Fleet) -> None:
    service = await fleet.start()
    await fleet.begin()
    body = proposal_body(fleet.epoch, deadline_ms=100)
    for shift_s, reason in ((-60, "deadline_passed"), (60, "issued_in_future")):
        now_ns = time.time_ns() + shift_s * 1_000_000_000
        sent = await fleet.admin.make(CONSENSUS_PROPOSAL, body, audience="all", now_ns=now_ns)
        await fleet.admin.send(DELIVER_ALL.at(), sent)
        await eventually(lambda: bool(service.metrics.counter(f"handler_refusals.{reason}")))  # noqa: B023 - awaited here
    decision = await fleet.propose()
    await fleet.deliver(fleet.proposal)
    for host in fleet.hosts:
        await host.ballot(0)
    await fleet.outcome(decision)
    await good_decision(fleet)
    assert sum(one.decision == decision for one in fleet.announced) == 1


async def test_ballots_that_do_not_count_are_named_and_the_others_decide(fleet: Fleet) -> None:
    service = await fleet.start()
    await fleet.begin()
    decision = await fleet.propose()
    host = fleet.hosts[1]
    agent = host.agents[0]
    stranger = await fleet.world.bus(SpiffeId.agent(DOMAIN, Role.SENTINEL, "stranger"))
    no_option = ballot_body(fleet.epoch, decision, 0).model_copy(
        update={"option": 7, "value": choice_digest(decision, 1, 7)}
    )
    of_another = ballot_body(bytes(32), decision, 0)
    good = ballot_body(fleet.epoch, decision, 0)
    for bus, who, body, reason in (
        (host.bus, agent, no_option, "bad_choice"),
        (host.bus, agent, of_another, "wrong_epoch"),
        (stranger, stranger.id, good, "not_a_participant"),
    ):
        sent = await bus.make(BALLOT, body, audience="service.consensus", sender=who)
        await bus.send(CONSENSUS_BALLOT.at(decision=decision.hex(), agent=who.name), sent)
        await eventually(lambda: bool(service.metrics.counter(f"handler_refusals.{reason}")))  # noqa: B023 - awaited here
    mine = await host.bus.make(BALLOT, good, audience="service.consensus", sender=agent)
    broken = mine._replace(data=mine.data[:-1] + bytes([mine.data[-1] ^ 1]))
    await host.bus.send(CONSENSUS_BALLOT.at(decision=decision.hex(), agent=agent.name), broken)
    for one in fleet.hosts:
        await one.ballot(0)
    assert (await fleet.outcome(decision)).outcome is Outcome.DECIDED
