"""Whatever comes in whatever order: at most one outcome, never below the quorum, never without an end."""

from __future__ import annotations

from functools import cache

from council import NOW_NS, Council, ballot_body
from hypothesis import given, settings
from hypothesis import strategies as st

from tocsin.consensus.effects import Accuse, CastVote, Effect, End, Voted
from tocsin.consensus.protocol import Protocol
from tocsin.consensus.tally import Received
from tocsin.contracts.decisions import Outcome, Proposal, Step
from tocsin.evidence.choices import close_value, decide_value, insufficient_value
from tocsin.evidence.reading import Evidence

AGENTS = 7
DEADLINE_NS = NOW_NS + 5_000_000_000

Event = tuple[str, int, int | None]
"""``ballot`` of an agent for an option, ``propose``, ``tick`` at the deadline, ``sign`` the oldest cast."""


@cache
def made() -> tuple[Council, Evidence[Proposal]]:
    council = Council(agents=AGENTS)
    return council, council.propose()


events = st.lists(
    st.one_of(
        st.tuples(st.just("ballot"), st.integers(0, AGENTS - 1), st.sampled_from([None, 0, 1])),
        st.tuples(st.just("propose"), st.just(0), st.none()),
        st.tuples(st.just("sign"), st.just(0), st.none()),
        st.tuples(st.sampled_from(["ballot", "tick"]), st.just(0), st.just(0)),
    ),
    max_size=40,
)


class Run:
    """One instance that is fed events; its votes are signed when the events say so, or at the end."""

    def __init__(self) -> None:
        self.council, self.proposal = made()
        self.me = self.council.services[0]
        self.protocol = Protocol(str(self.me))
        self.protocol.install(self.council.epoch)
        self.to_sign: list[CastVote] = []
        self.cast: list[CastVote] = []
        self.ends: list[End] = []
        self.accused: list[str] = []
        self.first: dict[int, int | None] = {}
        self.cast_for: set[tuple[int, int | None]] = set()
        self.equivocated: set[int] = set()

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, CastVote):
                self.to_sign.append(effect)
                self.cast.append(effect)
            elif isinstance(effect, End):
                self.ends.append(effect)
            elif isinstance(effect, Accuse):
                self.accused.append(effect.proof.accused)

    def sign(self) -> None:
        if self.to_sign:
            effect = self.to_sign.pop(0)
            key_id = self.council.seat(self.me)[1]
            self.take(
                self.protocol.signed(
                    Voted(effect.vote, self.me, key_id, effect.vote.step.value.encode()), NOW_NS
                )
            )

    def ballot(self, agent: int, option: int | None) -> None:
        who = self.council.voters[agent]
        body = ballot_body(self.council.epoch.digest, self.proposal.leaf, option)
        received = Received(body, who, self.council.seat(who)[1], bytes([agent]))
        self.cast_for.add((agent, option))
        if self.first.setdefault(agent, option) != option:
            self.equivocated.add(agent)
        self.take(self.protocol.ballot(received, NOW_NS))

    def happen(self, event: Event) -> None:
        what, agent, option = event
        if what == "ballot":
            self.ballot(agent, option)
        elif what == "propose":
            self.take(self.protocol.open(self.proposal, NOW_NS))
        elif what == "tick":
            self.take(self.protocol.tick(DEADLINE_NS))
        else:
            self.sign()

    def finish(self) -> None:
        """Let the proposal come, the deadline pass, and everything be signed."""
        for what in ("propose", "tick"):
            self.happen((what, 0, None))
        while self.to_sign:
            self.sign()


@settings(max_examples=300, deadline=None)
@given(events)
def test_a_decision_ends_once_and_by_the_rules(history: list[Event]) -> None:
    run = Run()
    for event in history:
        run.happen(event)
    run.finish()
    assert len(run.ends) == 1
    (end,) = run.ends
    needed = run.council.epoch.quorum.needed
    if end.outcome is Outcome.DECIDED:
        assert end.ballots is not None
        voters = {str(r.sender) for r in end.ballots.ballots}
        assert len(voters) == len(end.ballots.ballots) == needed
        for r in end.ballots.ballots:
            agent = run.council.voters.index(r.sender)
            assert end.ballots.option == r.ballot.option
            assert (agent, r.ballot.option) in run.cast_for
        assert end.commit.value == decide_value(run.proposal.leaf, 1, end.ballots.choice)
    elif end.outcome is Outcome.CLOSED:
        assert end.commit.value == close_value(run.proposal.leaf, 1)
    else:
        assert end.commit.value == insufficient_value(run.proposal.leaf, 1)
    # Each step is cast once, and all for one value.
    assert sorted(e.vote.step for e in run.cast) == sorted([Step.PROPOSE, Step.VOTE1, Step.VOTE2])
    assert {e.vote.value for e in run.cast} == {end.commit.value}


@settings(max_examples=200, deadline=None)
@given(events)
def test_only_who_cast_two_ballots_is_accused_and_once(history: list[Event]) -> None:
    run = Run()
    for event in history:
        run.happen(event)
    run.finish()
    assert len(set(run.accused)) == len(run.accused)
    assert set(run.accused) <= {str(run.council.voters[agent]) for agent in run.equivocated}


@settings(max_examples=200, deadline=None)
@given(st.permutations(range(AGENTS)), st.integers(0, AGENTS))
def test_a_unanimous_quorum_decides_in_any_order(order: list[int], opened_after: int) -> None:
    run = Run()
    for position, agent in enumerate(order):
        if position == opened_after:
            run.happen(("propose", 0, None))
        run.ballot(agent, 1)
        while run.to_sign:
            run.sign()
    run.finish()
    assert [end.outcome for end in run.ends] == [Outcome.DECIDED]
