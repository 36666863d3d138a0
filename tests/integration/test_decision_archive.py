"""Decisions of any age, as an operator reads them: in pages, proven, whatever else stands in the stream."""

from __future__ import annotations

import time

import pytest
from ends_support import closed_by
from support import World

from tocsin.bus import Bus
from tocsin.cli.decision_archive import Archive
from tocsin.contracts.catalogue import CONSENSUS_DECISION, DECISION
from tocsin.contracts.decisions import DecisionAnnounced, Outcome
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.identifiers import ServiceName
from tocsin.evidence.closure import verify_closure

DAYS_NS = 40 * 86_400 * 1_000_000_000


async def announce(instance: Bus, body: DecisionAnnounced, *, age_ns: int = 0) -> None:
    sent = await instance.make(DECISION, body, audience="event", now_ns=time.time_ns() - age_ns)
    await instance.send(CONSENSUS_DECISION.at(decision=body.decision.hex()), sent, stream="DECISIONS")


async def test_decisions_of_any_age_are_listed_in_pages_the_youngest_first(world: World) -> None:
    consensus, cli = await world.service(ServiceName.CONSENSUS), await world.service(ServiceName.CLI)
    ends = [await closed_by(world, consensus, number=number, why=str(number)) for number in range(5)]
    for body in ends:
        await announce(consensus, body, age_ns=DAYS_NS)
    archive = Archive(cli)
    first = await archive.page(limit=2)
    assert [one.announced.why for one in first.found] == ["4", "3"]
    second = await archive.page(limit=2, before=first.before)
    assert [one.announced.why for one in second.found] == ["2", "1"]
    last = await archive.page(limit=2, before=second.before)
    assert ([one.announced.why for one in last.found], last.before) == (["0"], None)
    assert not (await archive.page(limit=9, outcome=Outcome.DECIDED)).found
    assert not (await archive.page(limit=9, since_ns=time.time_ns() + 10**9)).found
    found = await archive.find(ends[0].decision.hex()[:20])
    assert found.announced == ends[0]
    closure = (await archive.closure(found)).encode()
    assert verify_closure(closure, world.authority.certificate_pem).ended == ends[0]


async def test_a_lie_in_the_stream_hides_nothing_and_is_not_shown(world: World) -> None:
    consensus, cli = await world.service(ServiceName.CONSENSUS), await world.service(ServiceName.CLI)
    true = await closed_by(world, consensus)
    lie = true.model_copy(update={"outcome": Outcome.INSUFFICIENT})
    alone = lie.model_copy(update={"decision": b"\xee" * 32})
    for body in (lie, true, lie, alone):
        await announce(consensus, body)
    await cli.connection.js.publish(CONSENSUS_DECISION.at(decision=true.decision.hex()), b"\x00junk")
    archive = Archive(cli)
    page = await archive.page(limit=9)
    assert ([one.announced for one in page.found], page.refused) == ([true], 4)
    assert (await archive.find(true.decision.hex())).announced == true
    for wanted, reason in (("ee", "no_such_decision"), ("xyz", "bad_decision"), ("", "bad_decision")):
        with pytest.raises(InvalidInputError) as caught:
            await archive.find(wanted)
        assert caught.value.reason == reason


async def test_nothing_was_decided_yet(world: World) -> None:
    archive = Archive(await world.service(ServiceName.CLI))
    assert await archive.page(limit=1) == ([], None, 0)
    with pytest.raises(InvalidInputError):
        await archive.find("ab")
