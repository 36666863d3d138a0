"""Of two changes of one epoch an instance makes one, whatever ballots there are."""

from __future__ import annotations

import pytest
from chains import Line
from council import NOW_NS, Council, ballot_body, proposal_body

from tocsin.consensus.effects import CastVote, Effect, End, LookUp, Voted
from tocsin.consensus.protocol import Protocol
from tocsin.consensus.tally import Received
from tocsin.contracts.catalogue import VOTE
from tocsin.contracts.decisions import Outcome, Proposal, Step
from tocsin.contracts.errors import TocsinError
from tocsin.evidence.choices import close_value
from tocsin.evidence.reading import Evidence
from tocsin.evidence.succession import GRACE_NS

DEADLINE_NS = NOW_NS + 5_000_000_000


class Instance:
    """One of a line's instances, that signs what it casts and is shown nothing else."""

    def __init__(self, line: Line, number: int) -> None:
        self.council = line.sitting()
        self.id = self.council.services[number]
        self.protocol = Protocol(str(self.id))
        self.protocol.install(line.epoch)
        self.cast: list[CastVote] = []
        self.ends: list[End] = []
        self.steps: list[Voted] = []

    def take(self, effects: list[Effect], now_ns: int = NOW_NS) -> None:
        while effects:
            effect, *effects = effects
            if isinstance(effect, CastVote):
                self.cast.append(effect)
                data = self.council.sign([(self.id, VOTE, effect.vote)])[0]
                voted = Voted(effect.vote, self.id, self.council.seat(self.id)[1], data)
                self.steps.append(voted)
                effects += self.protocol.signed(voted, now_ns)
            elif isinstance(effect, End):
                self.ends.append(effect)
            elif isinstance(effect, LookUp):
                effects += self.protocol.step_in(effect.decision, now_ns)

    def give_ballots(self, proposal: Evidence[Proposal], option: int = 0) -> None:
        for who in self.council.voters[: self.protocol.epoch.quorum.needed if self.protocol.epoch else 0]:
            body = ballot_body(self.council.epoch.digest, proposal.leaf, option)
            received = Received(body, who, self.council.seat(who)[1], f"{who.name}:{option}".encode())
            self.take(self.protocol.ballot(received, NOW_NS))

    def voted_on(self, proposal: Evidence[Proposal]) -> list[bytes | None]:
        return [one.vote.value for one in self.cast if one.vote.decision == proposal.leaf]


def two_changes(line: Line) -> tuple[Evidence[Proposal], Evidence[Proposal]]:
    council = line.sitting()
    one, other = (council.propose(line.proposal(line.change([line.newcomer()]))) for _ in range(2))
    return one, other


@pytest.fixture
def line() -> Line:
    return Line(Council(agents=7, instances=1))


def test_an_instance_makes_one_change_of_an_epoch_and_closes_the_other(line: Line) -> None:
    instance = Instance(line, 0)
    first, second = two_changes(line)
    for proposal in (first, second):
        instance.take(instance.protocol.open(proposal, NOW_NS))
    instance.give_ballots(second)
    instance.give_ballots(first)
    assert instance.voted_on(first) == []
    instance.take(instance.protocol.tick(DEADLINE_NS), DEADLINE_NS)
    assert [(end.decision, end.outcome) for end in instance.ends] == [
        (second.leaf, Outcome.DECIDED),
        (first.leaf, Outcome.CLOSED),
    ]
    assert set(instance.voted_on(first)) == {close_value(first.leaf, 1)}


def test_a_change_without_ballots_is_in_nobodys_way(line: Line) -> None:
    instance = Instance(line, 0)
    first, second = two_changes(line)
    instance.take(instance.protocol.open(first, NOW_NS))
    instance.take(instance.protocol.open(second, NOW_NS))
    instance.give_ballots(second)
    assert [end.decision for end in instance.ends] == [second.leaf]


def test_a_change_comes_after_one_that_was_closed(line: Line) -> None:
    instance = Instance(line, 0)
    first, second = two_changes(line)
    instance.take(instance.protocol.open(first, NOW_NS))
    instance.give_ballots(first, option=1)
    assert [end.outcome for end in instance.ends] == [Outcome.DECIDED], "to keep the epoch"
    instance.protocol.changes.closed(first.leaf)
    instance.take(instance.protocol.open(second, NOW_NS))
    instance.give_ballots(second)
    assert [end.decision for end in instance.ends] == [first.leaf, second.leaf]


def test_what_was_voted_for_before_a_restart_still_bars_another_change() -> None:
    line = Line(Council(agents=7, instances=4))
    first, second = two_changes(line)
    leader = int.from_bytes(first.leaf[:4], "big") % 4
    before = Instance(line, leader)
    before.take(before.protocol.open(first, NOW_NS))
    before.give_ballots(first)
    assert [one.vote.step for one in before.steps] == [Step.PROPOSE, Step.VOTE1]

    after = Instance(line, leader)
    after.protocol.restore(line.epoch, first, before.cast[-1].ballots, before.steps, NOW_NS)
    after.take(after.protocol.open(second, NOW_NS))
    after.give_ballots(second)
    assert after.voted_on(second) == []
    assert after.protocol.changes.bars(second.leaf, second.body, line.epoch, 0)
    after.protocol.changes.closed(first.leaf)
    assert not after.protocol.changes.bars(second.leaf, second.body, line.epoch, 0)


def test_no_change_of_an_epoch_is_made_once_a_later_one_is_installed(line: Line) -> None:
    instance = Instance(line, 0)
    first, _ = two_changes(line)
    instance.take(instance.protocol.open(first, NOW_NS))
    line.go_on()
    instance.protocol.install(line.epoch)
    council = line.council
    for who in council.voters[:6]:
        body = ballot_body(council.epoch.digest, first.leaf, 0)
        received = Received(body, who, council.seat(who)[1], who.name.encode())
        instance.take(instance.protocol.ballot(received, NOW_NS))
    assert instance.voted_on(first) == []
    instance.take(instance.protocol.tick(DEADLINE_NS), DEADLINE_NS)
    assert [end.outcome for end in instance.ends] == [Outcome.CLOSED]


def test_a_proposal_of_the_epoch_before_opens_a_decision_for_a_minute(line: Line) -> None:
    instance = Instance(line, 0)
    council = line.sitting()
    in_time, too_late = (council.propose(proposal_body(line.epoch.digest, subject=one)) for one in "ab")
    line.go_on(line.change([line.newcomer()], after_s=1))
    instance.protocol.install(line.epoch)
    instance.take(instance.protocol.open(in_time, NOW_NS))
    instance.give_ballots(in_time, option=1)
    assert [(end.outcome, end.epoch) for end in instance.ends] == [(Outcome.DECIDED, council.epoch)]
    with pytest.raises(TocsinError) as refused:
        instance.protocol.open(too_late, line.epoch.epoch.created_ns + GRACE_NS)
    assert refused.value.reason == "wrong_epoch"
