"""Rounds at one instance, and among four: when the next one comes, from which ballots, and what never counts."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from council import DENY, NOW_NS, OPTIONS, Council, ballot_in, proposal_body

from tocsin.consensus.effects import Ask, CastVote, Effect, End, LookUp, Opened, Show, Voted
from tocsin.consensus.protocol import Protocol
from tocsin.consensus.store import Keeping, recover
from tocsin.consensus.tally import Received
from tocsin.contracts.catalogue import VOTE
from tocsin.contracts.decisions import Counted, Option, Outcome, Proposal, Step, Vote
from tocsin.contracts.errors import TocsinError
from tocsin.evidence.choices import Question
from tocsin.evidence.reading import Evidence, read
from tocsin.evidence.rounds import Opening

MS = 1_000_000
LIMIT = Option(name="limit", command=DENY.model_copy(update={"duration_s": 60}), text="Block it for a minute")
WATCH = Option(name="watch", command=None, text="Watch it")
THREE = (*OPTIONS, LIMIT)
AUDIENCE = "service.consensus"


@pytest.fixture(scope="module")
def council() -> Council:
    """Seven agents (f = 2, q = 5) and one instance."""
    return Council()


@pytest.fixture(scope="module")
def four() -> Council:
    """The same with four instances: g = 1, Q = 3."""
    return Council(instances=4)


class Instance:
    """One instance; what it casts is signed and given back at once."""

    def __init__(self, council: Council, number: int = 0) -> None:
        self.council = council
        self.me = council.services[number]
        self.protocol = Protocol(str(self.me))
        self.protocol.install(council.epoch)
        self.now_ns = NOW_NS
        self.happened: list[Effect] = []
        self.sent: list[Voted] = []
        self.log: list[bytes] = []
        self.keeping = Keeping()

    def take(self, effects: Iterable[Effect]) -> None:
        waiting = list(effects)
        while waiting:
            effect, *waiting = waiting
            self.happened.append(effect)
            if isinstance(effect, Opened):
                self.log += self.keeping.opened(effect, self.council_key)
            if isinstance(effect, CastVote):
                data = self.council.sign([(self.me, VOTE, effect.vote)])[0]
                self.log += self.keeping.entries([(effect, data)], self.council_key)
                self.sent.append(Voted(effect.vote, self.me, self.council.seat(self.me)[1], data))
                waiting += self.protocol.signed(self.sent[-1], self.now_ns)

    def council_key(self, key_id: bytes) -> bytes | None:
        keys = {key.signer.key_id: key.signer.public_key for key in self.council.keys.values()}
        return keys.get(key_id)

    def open(self, proposal: Evidence[Proposal]) -> None:
        self.take(self.protocol.open(proposal, NOW_NS))

    def ballot(self, question: Question, choices: dict[int, int | Option | None]) -> None:
        """Let agents, by their number, ballot in a round."""
        for agent, choice in choices.items():
            self.take(self.protocol.ballot(self.received(question, agent, choice), self.now_ns))

    def received(self, question: Question, agent: int, choice: int | Option | None) -> Received:
        who = self.council.voters[agent]
        body = ballot_in(self.council.epoch.digest, question, choice)
        return Received(body, who, self.council.seat(who)[1], f"{agent}:{choice}".encode())

    def tick(self, at_ms: int) -> None:
        self.now_ns = NOW_NS + at_ms * MS
        self.take(self.protocol.tick(self.now_ns))

    def hear(self, *steps: Voted, now_ms: int = 0) -> None:
        for step in steps:
            self.take(self.protocol.signed(step, NOW_NS + now_ms * MS))

    def cast(self, step: Step) -> list[Vote]:
        return [voted.vote for voted in self.sent if voted.vote.step is step]

    @property
    def question(self) -> Question:
        (deciding,) = self.protocol._deciding.values()
        return deciding.round.question

    @property
    def end(self) -> End:
        (end,) = (effect for effect in self.happened if isinstance(effect, End))
        return end


def question_of(proposal: Evidence[Proposal]) -> Question:
    return Question.first(proposal.leaf, proposal.body)


def propose(
    council: Council, *, rounds: int = 3, options: tuple[Option, ...] = THREE, subject: str = "scan"
) -> Evidence[Proposal]:
    body = proposal_body(council.epoch.digest, rounds=rounds, options=options, subject=subject)
    return council.propose(body)


def names(question: Question) -> list[str]:
    return [option.name for option in question.options]


def test_a_split_vote_goes_on_at_once_with_what_is_left(council: Council) -> None:
    one, proposal = Instance(council), propose(council)
    one.open(proposal)
    one.ballot(question_of(proposal), {0: 2, 1: 2, 2: 2, 3: 0, 4: 0, 5: 1, 6: 1})
    (opened,) = (effect for effect in one.happened if isinstance(effect, Opened))
    assert opened.tell
    assert (one.question.round, names(one.question)) == (2, ["limit", "wait"])
    one.ballot(one.question, dict.fromkeys(range(5), 0))
    assert (one.end.outcome, one.end.opening.question.options[0]) == (Outcome.DECIDED, LIMIT)
    assert one.end.why == "5 of 7 ballots for one option in round 2 of 3"


def test_ballots_under_way_are_given_a_moment_before_the_options_are_refined(council: Council) -> None:
    one, proposal = Instance(council), propose(council)
    one.open(proposal)
    # Five of seven: no option can have five any more, and n - f have balloted.
    one.ballot(question_of(proposal), {0: 2, 1: 2, 2: 0, 3: 0, 4: 1})
    one.tick(0)
    assert not one.cast(Step.PROPOSE)
    one.tick(100)
    assert one.question.round == 2


def test_fewer_than_all_but_f_ballots_wait_for_the_deadline_and_refine_nothing(council: Council) -> None:
    one, proposal = Instance(council), propose(council)
    one.open(proposal)
    one.ballot(question_of(proposal), {0: 0, 1: 1, 2: 2, 3: 2})
    one.tick(4_999)
    assert not one.cast(Step.PROPOSE)
    one.tick(5_000)
    assert (one.question.round, one.question.options) == (2, THREE)


def test_each_round_has_a_deadline_of_its_own_and_the_last_one_ends_it(council: Council) -> None:
    one, proposal = Instance(council), propose(council, rounds=2)
    one.open(proposal)
    one.tick(5_000)
    one.tick(9_999)
    assert one.question.round == 2
    one.tick(10_000)
    assert one.end.outcome is Outcome.INSUFFICIENT
    assert one.end.commit.value == Question(proposal.leaf, 2, THREE).insufficient
    assert one.end.opening.question.round == 2


def test_a_counter_proposal_of_more_than_f_is_an_option_of_the_next_round(council: Council) -> None:
    one, proposal = Instance(council), propose(council, options=OPTIONS)
    one.open(proposal)
    one.ballot(question_of(proposal), {0: WATCH, 1: WATCH, 2: WATCH, 3: 0, 4: 0, 5: 1, 6: 1})
    assert names(one.question) == ["watch", "deny", "wait"]
    one.ballot(one.question, dict.fromkeys(range(5), 0))
    assert one.end.opening.question.options[0] == WATCH


def test_a_flood_of_counter_proposals_of_one_agent_fills_nothing(council: Council) -> None:
    one, proposal = Instance(council), propose(council, options=OPTIONS)
    one.open(proposal)
    for number in range(50):
        one.ballot(question_of(proposal), {1: Option(name="flood", command=None, text=str(number))})
    (deciding,) = one.protocol._deciding.values()
    assert len(deciding.tally.to_show()) == 2


def test_a_ballot_of_a_round_that_is_over_has_no_effect(council: Council) -> None:
    one, proposal = Instance(council), propose(council)
    one.open(proposal)
    one.ballot(question_of(proposal), {0: 2, 1: 2, 2: 2, 3: 0, 4: 0, 5: 1, 6: 1})
    late = [one.received(question_of(proposal), agent, 0) for agent in range(7)]
    assert [one.protocol.ballot(received, NOW_NS) for received in late] == [[]] * 7
    assert one.question.round == 2


def test_ballots_of_the_round_to_come_are_held_and_of_further_ones_refused(council: Council) -> None:
    one, proposal = Instance(council), propose(council)
    one.open(proposal)
    second = Question(proposal.leaf, 2, (LIMIT, OPTIONS[1]))
    one.ballot(second, dict.fromkeys(range(5), 0))
    with pytest.raises(TocsinError) as caught:
        one.protocol.ballot(one.received(Question(proposal.leaf, 3, THREE), 1, 0), NOW_NS)
    assert caught.value.reason == "wrong_round"
    assert not one.sent
    one.ballot(question_of(proposal), {0: 2, 1: 2, 2: 2, 3: 0, 4: 0, 5: 1, 6: 1})
    assert (one.end.outcome, one.end.opening.question.round) == (Outcome.DECIDED, 2)


def test_a_ballot_for_another_list_of_options_does_not_count(council: Council) -> None:
    one, proposal = Instance(council), propose(council)
    one.open(proposal)
    one.ballot(question_of(proposal), {0: 2, 1: 2, 2: 2, 3: 0, 4: 0, 5: 1, 6: 1})
    other = Question(proposal.leaf, 2, THREE)
    with pytest.raises(TocsinError) as caught:
        one.protocol.ballot(one.received(other, 1, 0), NOW_NS)
    assert caught.value.reason == "bad_choice"


# --- Four instances -------------------------------------------------------------------------------


def led_by(council: Council, leader: int) -> Evidence[Proposal]:
    bodies = (proposal_body(council.epoch.digest, subject=str(n), rounds=3, options=THREE) for n in range(200))
    proposals = (council.propose(body) for body in bodies)
    return next(p for p in proposals if int.from_bytes(p.leaf[:4], "big") % 4 == leader)


def step(council: Council, number: int, vote: Vote) -> Voted:
    who = council.services[number]
    evidence = read(council.sign([(who, VOTE, vote)])[0], VOTE, audience=AUDIENCE)
    return Voted(vote, who, evidence.key_id, evidence.data)


def proposed(
    council: Council, question: Question, value: bytes, counted: Counted | None, leader: int = 1
) -> Voted:
    vote = Vote(
        step=Step.PROPOSE,
        epoch=council.epoch.digest,
        decision=question.decision,
        round=question.round,
        view=1,
        value=value,
        counted=counted,
    )
    return step(council, leader, vote)


def counted(council: Council, question: Question, choices: dict[int, int | Option | None]) -> Counted:
    """Say from which ballots of which agents something was computed."""
    by_agent = {
        str(council.voters[agent]): (
            question.counter(choice) if isinstance(choice, Option) else question.choice(choice)
        )
        for agent, choice in choices.items()
    }
    values = sorted(set(by_agent.values()))
    seats = bytes(values.index(by_agent[who]) + 1 if who in by_agent else 0 for who in council.epoch.seats)
    return Counted(values=tuple(values), seats=seats)


SPLIT: dict[int, int | Option | None] = {0: 2, 1: 2, 2: 2, 3: 0, 4: 0, 5: 1, 6: 1}


def follower(council: Council, choices: dict[int, int | Option | None]) -> tuple[Instance, Question]:
    """Return an instance that does not lead, with ballots, after the deadline."""
    one, proposal = Instance(council), led_by(council, 1)
    one.open(proposal)
    one.ballot(question_of(proposal), choices)
    (deciding,) = one.protocol._deciding.values()
    deciding.round.late = True
    return one, question_of(proposal)


def test_a_next_round_is_voted_for_once_it_is_recomputed(four: Council) -> None:
    one, question = follower(four, SPLIT)
    right = question.next((LIMIT, OPTIONS[1]))
    one.hear(proposed(four, question, right, counted(four, question, SPLIT)))
    assert [vote.value for vote in one.cast(Step.VOTE1)] == [right]


@pytest.mark.parametrize(
    "options",
    [(OPTIONS[1], LIMIT), THREE, (LIMIT, OPTIONS[1], WATCH)],
    ids=["other_order", "unchanged", "one_more"],
)
def test_a_next_round_that_does_not_follow_from_the_ballots_is_not(
    four: Council, options: tuple[Option, ...]
) -> None:
    one, question = follower(four, SPLIT)
    one.hear(proposed(four, question, question.next(options), counted(four, question, SPLIT)))
    assert not one.cast(Step.VOTE1)


def test_who_lacks_a_ballot_that_was_counted_asks_and_votes_when_it_comes(four: Council) -> None:
    one, question = follower(four, {agent: SPLIT[agent] for agent in range(1, 7)})
    right = question.next((LIMIT, OPTIONS[1]))
    one.hear(proposed(four, question, right, counted(four, question, SPLIT)))
    assert not one.cast(Step.VOTE1)
    one.tick(1)
    one.tick(20)
    one.tick(101)
    assert [ask.instance for ask in one.happened if isinstance(ask, Ask)] == [str(four.services[1])]
    one.ballot(question, {0: 2})
    # Its timer has run out by then: it votes for the same in the next view.
    assert one.protocol._deciding[question.decision].round.admissible(right)


def test_of_two_ballots_of_one_agent_the_very_one_that_was_counted_must_be_held(four: Council) -> None:
    one, question = follower(four, SPLIT)
    other = SPLIT | {3: 2}
    lies = question.next((LIMIT, OPTIONS[1]))
    one.hear(proposed(four, question, lies, counted(four, question, other)))
    assert not one.cast(Step.VOTE1)
    one.ballot(question, {3: 2})
    assert [vote.value for vote in one.cast(Step.VOTE1)] == [lies]


def test_a_leader_that_counts_too_few_is_believed_only_by_who_holds_too_few(four: Council) -> None:
    few: dict[int, int | Option | None] = {0: 0, 1: 1}
    for choices, believed in ((SPLIT, False), (few, True)):
        one, question = follower(four, choices)
        one.hear(proposed(four, question, question.next(THREE), counted(four, question, few)))
        assert bool(one.cast(Step.VOTE1)) is believed


@pytest.mark.parametrize("seats", [b"", bytes(6), b"\x09" * 7], ids=["none", "too_few", "no_such_value"])
def test_a_count_of_another_shape_is_no_ground(four: Council, seats: bytes) -> None:
    one, question = follower(four, SPLIT)
    broken = counted(four, question, SPLIT).model_copy(update={"seats": seats})
    one.hear(proposed(four, question, question.next((LIMIT, OPTIONS[1])), broken))
    assert not one.cast(Step.VOTE1)


def test_nothing_but_the_decision_is_voted_for_with_a_quorum_in_hand(four: Council) -> None:
    one, question = follower(four, dict.fromkeys(range(5), 0))
    one.hear(proposed(four, question, question.next(THREE), counted(four, question, {})))
    assert not one.cast(Step.VOTE1)


def test_closing_before_the_last_round_is_not_voted_for(four: Council) -> None:
    one, question = follower(four, SPLIT)
    one.hear(proposed(four, question, question.close, None))
    assert not one.cast(Step.VOTE1)


def commit(council: Council, question: Question, value: bytes) -> tuple[Voted, ...]:
    vote = Vote(
        step=Step.VOTE2,
        epoch=council.epoch.digest,
        decision=question.decision,
        round=question.round,
        view=1,
        value=value,
    )
    return tuple(step(council, number, vote) for number in (1, 2, 3))


def test_who_saw_only_the_commit_asks_for_the_options_and_goes_on(four: Council) -> None:
    one, proposal = Instance(four), led_by(four, 1)
    one.open(proposal)
    question, options = question_of(proposal), (LIMIT, OPTIONS[1])
    one.hear(*commit(four, question, question.next(options)))
    assert one.question.round == 1
    one.tick(1)
    one.tick(102)
    assert any(isinstance(effect, Ask) for effect in one.happened)
    one.take(one.protocol.learn(question.decision, THREE, NOW_NS))
    assert one.question.round == 1
    one.take(one.protocol.learn(question.decision, options, NOW_NS))
    assert (one.question.round, one.question.options) == (2, options)


def test_the_leader_of_the_committed_view_tells_first_and_the_others_later(four: Council) -> None:
    told: list[list[bool]] = []
    for leader in (0, 3):
        one, proposal = Instance(four), led_by(four, leader)
        one.open(proposal)
        question = question_of(proposal)
        one.hear(*commit(four, question, question.next(THREE)))
        one.take(one.protocol.learn(question.decision, THREE, NOW_NS))
        for at_ms in (999, 1_000, 3_999, 4_000):
            one.tick(at_ms)
        told.append([effect.tell for effect in one.happened if isinstance(effect, Opened)])
    # Again, after 4 s by the first, after 1 s by the next in turn, and ever more rarely.
    assert told == [[True, True], [False, True]]


def test_what_was_looked_up_before_the_end_lets_nobody_announce_out_of_turn(four: Council) -> None:
    """A slow view is looked up; the leader may announce while the answer to that is still on its way."""
    one, proposal = Instance(four), led_by(four, 3)
    one.open(proposal)
    question = question_of(proposal)
    one.ballot(question, dict.fromkeys(range(5), 0))

    def looked_up() -> int:
        return sum(isinstance(effect, LookUp) for effect in one.happened)

    for at_ms in range(10, 500, 10):
        one.tick(at_ms)
    assert looked_up() == 1
    one.hear(*commit(four, question, question.decide(0)), now_ms=500)
    for at_ms in (501, 1_400):
        one.take(one.protocol.step_in(proposal.leaf, NOW_NS + at_ms * MS))
        assert not any(isinstance(effect, End) for effect in one.happened)
    one.tick(1_499)
    assert looked_up() == 1
    # Its turn: it looks again, and announces if nobody has.
    one.tick(1_500)
    assert looked_up() == 2
    one.take(one.protocol.step_in(proposal.leaf, NOW_NS + 1_510 * MS))
    assert one.end.outcome is Outcome.DECIDED


def test_who_is_behind_is_brought_to_the_last_round_by_the_commit_before_it(four: Council) -> None:
    one, proposal = Instance(four), led_by(four, 1)
    one.open(proposal)
    third = Question(proposal.leaf, 3, (LIMIT, OPTIONS[1]))
    second = Question(proposal.leaf, 2, THREE)
    before = tuple(voted.data for voted in commit(four, second, second.next(third.options)))
    one.take(one.protocol.opened(Opening(third, before), NOW_NS))
    assert one.question == third
    # And never back.
    one.take(one.protocol.opened(Opening(second, before), NOW_NS))
    assert one.question == third


def test_who_hears_more_than_g_others_in_a_later_round_asks(four: Council) -> None:
    one, proposal = Instance(four), led_by(four, 1)
    one.open(proposal)
    timeout = Vote(
        step=Step.TIMEOUT, epoch=four.epoch.digest, decision=proposal.leaf, round=2, view=1, value=None
    )
    for numbers, asks in (((1,), 0), ((2,), 1)):
        one.hear(*(step(four, number, timeout) for number in numbers))
        one.tick(200)
        one.tick(400)
        assert sum(isinstance(effect, Ask) for effect in one.happened) == asks


def test_who_is_in_an_earlier_round_is_shown_how_this_one_began(four: Council) -> None:
    one, proposal = Instance(four), led_by(four, 1)
    one.open(proposal)
    question = question_of(proposal)
    one.hear(*commit(four, question, question.next(THREE)))
    one.take(one.protocol.learn(question.decision, THREE, NOW_NS))
    timeout = Vote(
        step=Step.TIMEOUT, epoch=four.epoch.digest, decision=proposal.leaf, round=1, view=1, value=None
    )
    one.hear(step(four, 2, timeout), now_ms=500)
    show = next(effect for effect in one.happened if isinstance(effect, Show))
    assert (show.instance, show.opening.question.round, len(show.opening.before)) == (
        str(four.services[2]),
        2,
        3,
    )


def test_a_step_of_a_round_that_the_proposal_does_not_allow_is_refused(four: Council) -> None:
    one, proposal = Instance(four), led_by(four, 1)
    one.open(proposal)
    vote = Vote(step=Step.TIMEOUT, epoch=four.epoch.digest, decision=proposal.leaf, round=4, view=1, value=None)
    with pytest.raises(TocsinError) as caught:
        one.protocol.signed(step(four, 1, vote), NOW_NS)
    assert caught.value.reason == "wrong_round"


def test_the_log_brings_back_the_round_and_what_was_voted_for_and_nothing_is_cast_twice(
    council: Council,
) -> None:
    one, proposal = Instance(council), propose(council)
    one.open(proposal)
    one.ballot(question_of(proposal), {0: 2, 1: 2, 2: 2, 3: 0, 4: 0, 5: 1, 6: 1})
    recovered = recover(one.log, council.trust)
    (rest,) = recovered.unfinished.values()
    assert rest.opening is not None
    assert rest.opening.question == one.question
    assert rest.following == {(1, (LIMIT, OPTIONS[1]))}
    again = Instance(council)
    again.take(
        again.protocol.restore(
            council.epoch,
            rest.proposal,
            rest.ballots,
            rest.own,
            NOW_NS,
            opening=rest.opening,
            following=rest.following,
        )
    )
    assert not again.sent
    assert again.question == one.question
    # No step was taken in the second round: ballots have its whole time once more.
    again.tick(4_999)
    assert not again.sent
    again.ballot(again.question, dict.fromkeys(range(5), 0))
    again.take(again.protocol.step_in(proposal.leaf, NOW_NS))
    assert again.end.outcome is Outcome.DECIDED


def test_a_key_is_kept_once_and_again_only_in_another_log(council: Council) -> None:
    one, logged = Instance(council), []
    for number in range(2):
        proposal = propose(council, subject=f"the {number}th")
        one.open(proposal)
        one.ballot(question_of(proposal), dict.fromkeys(range(7), 0))
        logged.append(len([entry for entry in one.log if entry.startswith(b"K")]))
    keys = {council.seat(who)[1] for who in council.voters[: council.epoch.quorum.needed]}
    assert logged == [len(keys), len(keys)]
    # Ballots of this test are no envelopes, which a log would be read with.
    recovered = recover([entry for entry in one.log if not entry.startswith(b"B")], council.trust)
    assert recovered.keys.keys() == keys
    assert len(recovered.unfinished) == 2

    again = Instance(council)
    again.keeping = Keeping(recovered.keys)
    again.open(proposal)
    again.ballot(question_of(proposal), dict.fromkeys(range(7), 0))
    assert again.log
    assert not [entry for entry in again.log if entry.startswith(b"K")]


def test_options_voted_for_in_one_round_are_no_ground_in_the_next(four: Council) -> None:
    """What the log says of round 1 makes nothing admissible in round 2 that was not recomputed there."""
    one, proposal = Instance(four), led_by(four, 1)
    second = Question(proposal.leaf, 2, THREE)
    opening = Opening(second, tuple(v.data for v in commit(four, question_of(proposal), bytes(32))))
    one.take(
        one.protocol.restore(
            four.epoch, proposal, [], [], NOW_NS, opening=opening, following=[(1, (LIMIT, OPTIONS[1]))]
        )
    )
    deciding = one.protocol._deciding[proposal.leaf]
    deciding.round.late = True
    assert not deciding.round.admissible(second.next((LIMIT, OPTIONS[1])))
