"""Rounds over a real broker: split votes are refined and asked again, whoever is killed between two rounds."""

from __future__ import annotations

import asyncio

import pytest
from consensus_fleet import Fleet
from council import DENY, OPTIONS
from support import World, eventually

from tocsin.consensus.service import ConsensusService
from tocsin.contracts.decisions import Option, Outcome
from tocsin.evidence.verification import verify

FOUR = range(4)
LIMIT = Option(name="limit", command=DENY.model_copy(update={"duration_s": 60}), text="Block it for a minute")
THREE = (*OPTIONS, LIMIT)


@pytest.fixture
async def fleet(world: World) -> Fleet:
    """An admin and three hosts of three agents, and four instances: n = 10, f = 3, q = 7; m = 4, Q = 3."""
    fleet = Fleet(world, instances=4)
    await fleet.populate(hosts=3, per_host=3)
    return fleet


async def begin(fleet: Fleet, services: list[ConsensusService]) -> None:
    await fleet.begin()
    await eventually(lambda: all(s.protocol.epoch is not None for s in services))


async def halt(service: ConsensusService) -> None:
    await service.stop()
    await service.bus.__aexit__(None, None, None)


async def split(fleet: Fleet, decision: bytes, round_number: int, choices: list[str | Option | None]) -> None:
    """Let each host ballot for something else, the admin for the first."""
    question = await fleet.asked(decision, round_number)
    await asyncio.gather(
        *(host.ballot_in(question, choice) for host, choice in zip(fleet.hosts, choices, strict=True))
    )


async def test_a_split_vote_is_refined_and_decided_in_the_second_round(fleet: Fleet) -> None:
    services = [await fleet.start(i) for i in FOUR]
    await begin(fleet, services)
    decision = await fleet.propose(rounds=3, options=THREE, deadline_ms=60_000)
    await split(fleet, decision, 1, ["limit", "deny", "wait", "limit"])
    question = await fleet.asked(decision, 2)
    # The least supported goes, what does nothing stays, the leading one stands first.
    assert [option.name for option in question.options] == ["limit", "wait"]
    await split(fleet, decision, 2, ["limit", "limit", "wait", "limit"])
    announced = await fleet.outcome(decision)
    assert (announced.outcome, announced.round, announced.option) == (Outcome.DECIDED, 2, LIMIT)
    data = await fleet.cli.get_certificate(announced.object_name or "")
    decided = verify(data, fleet.world.authority.certificate_pem)
    assert (decided.round, decided.option) == (2, LIMIT)
    await eventually(lambda: not any(s.protocol.busy for s in services), within_s=30)
    assert len(fleet.announced) == 1
