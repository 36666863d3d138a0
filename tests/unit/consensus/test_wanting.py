"""When ballots are asked for again: not while they come, less and less often, and only those that are missing."""

from __future__ import annotations

from itertools import pairwise

from council import NOW_NS, Council, proposal_body
from hypothesis import given
from hypothesis import strategies as st

from tocsin.consensus.effects import Effect, Want
from tocsin.consensus.pace import Pace
from tocsin.consensus.protocol import Protocol
from tocsin.consensus.tally import Received
from tocsin.consensus.wanting import Wanting, bitmap
from tocsin.contracts.catalogue import BALLOT
from tocsin.evidence.reading import read

MS = 1_000_000
PACE = Pace()


def wants(effects: list[Effect]) -> list[Want]:
    return [effect for effect in effects if isinstance(effect, Want)]


def test_who_is_missing_is_asked_once_it_is_quiet_and_ever_less_often() -> None:
    council = Council()
    protocol = Protocol(str(council.services[0]))
    protocol.install(council.epoch)
    proposal = council.propose(proposal_body(council.epoch.digest, deadline_ms=60_000))
    protocol.open(proposal, NOW_NS)
    first = council.voters[0]
    (data,) = council.ballots(proposal.leaf, [(first, 0)])
    ballot = read(data, BALLOT, audience="service.consensus")
    protocol.ballot(Received(ballot.body, first, ballot.key_id, data), NOW_NS + 100 * MS)
    asked = []
    for passed_ms in range(0, 20_000, 5):
        for want in wants(protocol.tick(NOW_NS + passed_ms * MS)):
            asked.append(passed_ms)
            assert want.missing == {str(who) for who in council.voters[1:]}
            assert (want.decision, want.round) == (proposal.leaf, 1)
    want_ms = PACE.want_ns // MS
    assert 100 + want_ms <= asked[0] <= 110 + want_ms
    pauses = [after - before for before, after in pairwise(asked)]
    assert pauses[:3] == [2 * want_ms, 4 * want_ms, 8 * want_ms]


def test_nobody_is_asked_once_there_is_something_to_propose() -> None:
    council = Council()
    protocol = Protocol(str(council.services[0]))
    protocol.install(council.epoch)
    proposal = council.propose(proposal_body(council.epoch.digest, deadline_ms=60_000))
    protocol.open(proposal, NOW_NS)
    quorum = council.voters[: council.epoch.quorum.needed]
    for data in council.ballots(proposal.leaf, [(who, 0) for who in quorum]):
        ballot = read(data, BALLOT, audience="service.consensus")
        protocol.ballot(Received(ballot.body, ballot.sender, ballot.key_id, data), NOW_NS)
    assert not [w for ms in range(0, 5_000, 50) for w in wants(protocol.tick(NOW_NS + ms * MS))]


def test_while_others_ballots_come_it_waits_longer() -> None:
    wanting = Wanting(PACE)
    assert not wanting.due(NOW_NS, quiet=False)
    assert not wanting.due(NOW_NS + PACE.want_ns, quiet=False)
    assert wanting.due(NOW_NS + PACE.want_late_ns, quiet=False)


@given(st.lists(st.booleans(), max_size=200))
def test_a_bitmap_says_who_is_wanted_and_nobody_else(chosen: list[bool]) -> None:
    seats = [f"s-{i}" for i in range(len(chosen))]
    bits = bitmap(seats, {seat for seat, wanted in zip(seats, chosen, strict=True) if wanted})
    assert [bool(bits[i // 8] >> i % 8 & 1) for i in range(len(chosen))] == chosen
