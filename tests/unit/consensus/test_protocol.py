"""One instance's rules: what opens a decision, which ballots count, how it ends."""

from __future__ import annotations

from dataclasses import replace

import pytest
from council import DOMAIN, NOW_NS, Council, ballot_body, proposal_body

from tocsin.consensus.effects import Accuse, CastVote, Effect, End, LookUp, SendAgain, Voted, Want
from tocsin.consensus.pace import Pace
from tocsin.consensus.protocol import SKEW_NS, Limits, Protocol
from tocsin.consensus.tally import Received
from tocsin.contracts.catalogue import BALLOT, VOTE
from tocsin.contracts.decisions import Option, Outcome, Step
from tocsin.contracts.errors import TocsinError
from tocsin.contracts.identifiers import Role, SpiffeId
from tocsin.evidence.choices import choice_digest, close_value, decide_value, insufficient_value
from tocsin.evidence.epochs import open_epoch
from tocsin.evidence.reading import read

WORDS = (Option(name="yes", command=None, text="Yes"), Option(name="no", command=None, text="No"))

MS = 1_000_000


@pytest.fixture(scope="module")
def council() -> Council:
    return Council()


@pytest.fixture
def protocol(council: Council) -> Protocol:
    return installed(council)


def installed(council: Council, limits: Limits | None = None) -> Protocol:
    protocol = Protocol(str(council.services[0]), limits)
    assert protocol.install(council.epoch)
    return protocol


def received(council: Council, who: SpiffeId, decision: bytes, option: int | None) -> Received:
    """Return a ballot as the bus hands it over: its signature is the bus's business, so the data are short."""
    body = ballot_body(council.epoch.digest, decision, option)
    return Received(body, who, council.seat(who)[1], f"{who.name}:{option}".encode())


def settle(council: Council, protocol: Protocol, effects: list[Effect]) -> list[Effect]:
    """Sign what is to be cast and give it back, as the shell does; return everything that happened."""
    happened: list[Effect] = []
    while effects:
        effect, *effects = effects
        happened.append(effect)
        if isinstance(effect, CastVote):
            me = council.services[0]
            data = council.sign([(me, VOTE, effect.vote)])[0]
            effects += protocol.signed(Voted(effect.vote, me, council.seat(me)[1], data), NOW_NS)
        elif isinstance(effect, LookUp):
            effects += protocol.step_in(effect.decision, NOW_NS)
    return happened


def refusal(act: object) -> str:
    with pytest.raises(TocsinError) as caught:
        act()  # type: ignore[operator]  # every caller passes a lambda
    return caught.value.reason


def test_a_quorum_decides_and_no_ballot_fewer(council: Council, protocol: Protocol) -> None:
    proposal = council.propose()
    effects = protocol.open(proposal, NOW_NS)
    for who in council.voters[:4]:
        effects += protocol.ballot(received(council, who, proposal.leaf, 0), NOW_NS)
    assert effects == []
    effects = settle(
        council, protocol, protocol.ballot(received(council, council.voters[4], proposal.leaf, 0), 0)
    )
    steps = [e.vote.step for e in effects if isinstance(e, CastVote)]
    assert steps == [Step.PROPOSE, Step.VOTE1, Step.VOTE2]
    (end,) = (e for e in effects if isinstance(e, End))
    assert end.outcome is Outcome.DECIDED
    assert end.ballots is not None
    assert (end.ballots.option, end.ballots_for, end.ballots_received) == (0, 5, 5)
    assert end.missing == tuple(sorted(map(str, council.voters[5:])))


def test_after_the_decision_nothing_has_an_effect(council: Council, protocol: Protocol) -> None:
    proposal = council.propose()
    protocol.open(proposal, NOW_NS)
    for who in council.voters[:5]:
        settle(council, protocol, protocol.ballot(received(council, who, proposal.leaf, 1), NOW_NS))
    late = council.voters[5]
    assert protocol.open_decisions == 0
    assert protocol.ballot(received(council, late, proposal.leaf, 0), NOW_NS) == []
    assert protocol.open(proposal, NOW_NS) == []
    assert protocol.tick(NOW_NS + 6_000 * MS) == []


def test_what_has_ended_is_forgotten_only_when_its_proposal_is_too_old(
    council: Council, protocol: Protocol
) -> None:
    proposal = council.propose()
    protocol.open(proposal, NOW_NS)
    settle(council, protocol, protocol.tick(NOW_NS + 5_000 * MS))
    for now_ns in (NOW_NS + 5_000 * MS + SKEW_NS, NOW_NS + 5_001 * MS + SKEW_NS):
        protocol.tick(now_ns)
    assert refusal(lambda: protocol.open(proposal, NOW_NS + 5_001 * MS + SKEW_NS)) == "deadline_passed"


def test_ballots_before_the_proposal_are_held_and_counted(council: Council, protocol: Protocol) -> None:
    proposal = council.propose()
    for who in council.voters[:5]:
        assert protocol.ballot(received(council, who, proposal.leaf, 0), NOW_NS) == []
    effects = settle(council, protocol, protocol.open(proposal, NOW_NS))
    assert isinstance(effects[-1], End)


def test_two_ballots_that_were_held_are_an_equivocation(council: Council, protocol: Protocol) -> None:
    proposal = council.propose()
    for option in (0, 1, 0):
        protocol.ballot(received(council, council.voters[3], proposal.leaf, option), NOW_NS)
    (accused,) = protocol.open(proposal, NOW_NS)
    assert isinstance(accused, Accuse)
    assert accused.proof.accused == str(council.voters[3])


def test_held_ballots_are_bounded_per_agent_and_expire(council: Council, protocol: Protocol) -> None:
    who, other = council.voters[1:3]
    for number in range(4):
        protocol.ballot(received(council, who, bytes([number]) * 32, 0), NOW_NS)
    fifth = received(council, who, bytes([9]) * 32, 0)
    assert refusal(lambda: protocol.ballot(fifth, NOW_NS)) == "too_many_held"
    assert protocol.ballot(received(council, other, bytes([9]) * 32, 0), NOW_NS) == []
    protocol.tick(NOW_NS + SKEW_NS + 1)
    assert protocol.ballot(fifth, NOW_NS) == []


def test_an_equivocator_counts_once_and_is_accused_once(council: Council, protocol: Protocol) -> None:
    proposal = council.propose()
    protocol.open(proposal, NOW_NS)
    who = council.voters[2]
    first, second = (received(council, who, proposal.leaf, option) for option in (0, 1))
    assert protocol.ballot(first, NOW_NS) == []
    (accused,) = protocol.ballot(second, NOW_NS)
    assert isinstance(accused, Accuse)
    assert (accused.proof.first, accused.proof.second) == (first.data, second.data)
    assert protocol.ballot(second, NOW_NS) == []
    for other in council.voters[3:7]:
        effects = settle(council, protocol, protocol.ballot(received(council, other, proposal.leaf, 0), NOW_NS))
    (end,) = (e for e in effects if isinstance(e, End))
    assert end.ballots is not None
    assert [r.data for r in end.ballots.ballots if r.sender == who] == [first.data]


def test_the_deadline_closes(council: Council, protocol: Protocol) -> None:
    proposal = council.propose()
    protocol.open(proposal, NOW_NS)
    protocol.ballot(received(council, council.voters[0], proposal.leaf, 0), NOW_NS)
    assert all(isinstance(effect, Want) for effect in protocol.tick(NOW_NS + 4_999 * MS))
    effects = settle(council, protocol, protocol.tick(NOW_NS + 5_000 * MS))
    end = effects[-1]
    assert isinstance(end, End)
    assert (end.outcome, end.ballots) == (Outcome.INSUFFICIENT, None)
    assert end.commit.value == insufficient_value(proposal.leaf, 1)
    assert end.why == "1 of the 5 participants needed had balloted before the deadline"


def test_the_deadline_closes_what_a_quorum_could_not_agree_on(council: Council, protocol: Protocol) -> None:
    proposal = council.propose()
    protocol.open(proposal, NOW_NS)
    for position, who in enumerate(council.voters[:5]):
        protocol.ballot(received(council, who, proposal.leaf, int(position == 0)), NOW_NS)
    effects = settle(council, protocol, protocol.tick(NOW_NS + 5_000 * MS))
    end = effects[-1]
    assert isinstance(end, End)
    assert (end.outcome, end.ballots) == (Outcome.CLOSED, None)
    assert end.commit.value == close_value(proposal.leaf, 1)
    assert "before the deadline: 4 of the 5 ballots" in end.why


def test_impossibility_closes_at_once(council: Council, protocol: Protocol) -> None:
    proposal = council.propose()
    effects = protocol.open(proposal, NOW_NS)
    for position, who in enumerate(council.voters[:6]):
        assert effects == []
        effects += protocol.ballot(received(council, who, proposal.leaf, position % 2), NOW_NS)
    effects = settle(council, protocol, effects)
    end = effects[-1]
    assert isinstance(end, End)
    assert end.outcome is Outcome.CLOSED
    assert "can reach its quorum any more" in end.why


def test_abstentions_decide_nothing(council: Council, protocol: Protocol) -> None:
    proposal = council.propose()
    protocol.open(proposal, NOW_NS)
    effects: list[Effect] = []
    for who in council.voters[:5]:
        effects += settle(
            council, protocol, protocol.ballot(received(council, who, proposal.leaf, None), NOW_NS)
        )
    assert isinstance(effects[-1], End)
    assert effects[-1].outcome is Outcome.CLOSED


def test_a_ballot_between_the_closing_proposal_and_its_signature_changes_nothing(
    council: Council, protocol: Protocol
) -> None:
    """The deadline passes with four of five ballots; the fifth arrives while INSUFFICIENT is being signed."""
    proposal = council.propose()
    protocol.open(proposal, NOW_NS)
    for who in council.voters[:4]:
        protocol.ballot(received(council, who, proposal.leaf, 0), NOW_NS)
    closing = protocol.tick(NOW_NS + 5_000 * MS)
    assert protocol.ballot(received(council, council.voters[4], proposal.leaf, 0), NOW_NS) == []
    effects = settle(council, protocol, closing)
    assert {e.vote.value for e in effects if isinstance(e, CastVote)} == {insufficient_value(proposal.leaf, 1)}
    assert isinstance(effects[-1], End)
    assert effects[-1].outcome is Outcome.INSUFFICIENT


def test_who_may_not_ballot_is_refused(council: Council, protocol: Protocol) -> None:
    proposal = council.propose()
    protocol.open(proposal, NOW_NS)
    good = received(council, council.voters[1], proposal.leaf, 0)
    stranger = SpiffeId.parse(str(good.sender).replace("s-1", "s-99"))
    other_key = council.seat(council.voters[3])[1]
    cases = {
        "not_a_participant": Received(good.ballot, stranger, good.key_id, b""),
        "wrong_key": Received(good.ballot, good.sender, other_key, b""),
        "wrong_epoch": Received(
            good.ballot.model_copy(update={"epoch": bytes(32)}), good.sender, good.key_id, b""
        ),
        "wrong_round": Received(good.ballot.model_copy(update={"round": 2}), good.sender, good.key_id, b""),
        "bad_choice": Received(good.ballot.model_copy(update={"option": 1}), good.sender, good.key_id, b""),
    }
    for reason, ballot in cases.items():
        assert refusal(lambda ballot=ballot: protocol.ballot(ballot, NOW_NS)) == reason
    assert (
        refusal(lambda: protocol.ballot(received(council, good.sender, proposal.leaf, 5), NOW_NS))
        == "bad_choice"
    )


def test_what_may_not_open_a_decision_is_refused(council: Council, protocol: Protocol) -> None:
    proposal = council.propose()
    other_epoch = council.propose(proposal_body(bytes(32)))
    assert refusal(lambda: protocol.open(other_epoch, NOW_NS)) == "wrong_epoch"
    assert refusal(lambda: protocol.open(proposal, NOW_NS - SKEW_NS - 1)) == "issued_in_future"
    assert refusal(lambda: protocol.open(proposal, NOW_NS + SKEW_NS + 5_001 * MS)) == "deadline_passed"
    fresh = Protocol(str(council.services[0]))
    assert refusal(lambda: fresh.open(proposal, NOW_NS)) == "no_epoch"
    assert (
        refusal(lambda: fresh.ballot(received(council, council.admin, proposal.leaf, 0), NOW_NS)) == "no_epoch"
    )


def test_open_decisions_are_bounded(council: Council) -> None:
    protocol = installed(council, Limits(open_decisions=5, open_per_proposer=2))
    for number in range(2):
        protocol.open(council.propose(proposal_body(council.epoch.digest, subject=str(number))), NOW_NS)
    third = council.propose(proposal_body(council.epoch.digest, subject="third"))
    assert refusal(lambda: protocol.open(third, NOW_NS)) == "too_many_decisions"
    settle(council, protocol, protocol.tick(NOW_NS + 5_000 * MS))
    assert protocol.open(third, NOW_NS) == []


def council_with(*agents: SpiffeId) -> Council:
    council = Council()
    council.keys |= {str(agent): council.new_key() for agent in agents}
    council.voters += agents
    return council


def test_questions_leave_room_for_commands() -> None:
    hunters = [SpiffeId.agent(DOMAIN, Role.HUNTER, f"h-{i}") for i in range(3)]
    council = council_with(*hunters)
    protocol = installed(council, Limits(open_decisions=4, open_per_asker=1))

    def ask(hunter: SpiffeId, subject: str) -> str | None:
        body = proposal_body(council.epoch.digest, subject=subject, options=WORDS)
        proposal = council.propose(body, hunter)
        try:
            protocol.open(proposal, NOW_NS)
        except TocsinError as error:
            return error.reason
        return None

    assert ask(hunters[0], "one") is None
    assert ask(hunters[0], "another of the same") == "too_many_decisions"
    assert ask(hunters[1], "two") is None
    assert ask(hunters[2], "three: half is full") == "too_many_decisions"
    for number in range(2):
        protocol.open(council.propose(proposal_body(council.epoch.digest, subject=str(number))), NOW_NS)
    assert protocol.open_decisions == 4


@pytest.mark.parametrize("role", [Role.HUNTER, Role.SENTINEL])
def test_who_may_not_propose_a_command_opens_nothing(role: Role) -> None:
    who = SpiffeId.agent(DOMAIN, role, "x")
    council = council_with(who)
    protocol = installed(council)
    assert refusal(lambda: protocol.open(council.propose(sender=who), NOW_NS)) == "proposer_not_allowed"
    assert protocol.open_decisions == 0


def test_epochs_go_forward_only(council: Council) -> None:
    protocol = installed(council)
    assert not protocol.install(council.epoch)
    same_number = open_epoch(council.sign_epoch(council.epoch_record(0)), council.trust)
    later = open_epoch(council.sign_epoch(council.epoch_record(2)), council.trust)
    between = open_epoch(council.sign_epoch(council.epoch_record(1)), council.trust)
    assert same_number.digest != council.epoch.digest
    assert refusal(lambda: protocol.install(same_number)) == "stale_epoch"
    assert protocol.install(later)
    assert refusal(lambda: protocol.install(between)) == "stale_epoch"


def test_who_has_lost_its_log_abstains_until_the_next_epoch(council: Council) -> None:
    protocol = Protocol(str(council.services[0]))
    protocol.abstain_until_after(0)
    assert refusal(lambda: protocol.install(council.epoch)) == "stale_epoch"
    assert protocol.install(open_epoch(council.sign_epoch(council.epoch_record(1)), council.trust))


def test_who_is_no_instance_takes_no_epoch(council: Council) -> None:
    assert refusal(lambda: Protocol("spiffe://x/y/z").install(council.epoch)) == "not_an_instance"


@pytest.mark.parametrize("kept", [(Step.PROPOSE, Step.VOTE1), (Step.PROPOSE, Step.VOTE1, Step.VOTE2)])
@pytest.mark.parametrize("balloted", [5, 2])
def test_a_restart_goes_on_where_the_log_ends(
    council: Council, protocol: Protocol, kept: tuple[Step, ...], balloted: int
) -> None:
    """Decided (five ballots) or closed (two), with or without the VOTE2: the same outcome, nothing cast anew."""
    proposal = council.propose()
    protocol.open(proposal, NOW_NS)
    effects: list[Effect] = []
    for who in council.voters[:balloted]:
        effects += protocol.ballot(received(council, who, proposal.leaf, 0), NOW_NS)
    before = settle(council, protocol, effects + protocol.tick(NOW_NS + 5_000 * MS))
    votes = {e.vote.step: e for e in before if isinstance(e, CastVote)}
    before_steps = list(votes)
    logged = [
        read(
            council.sign([(council.services[0], VOTE, votes[step].vote)])[0], VOTE, audience="service.consensus"
        )
        for step in kept
    ]
    again = installed(council)
    own = [Voted(v.body, v.sender, v.key_id, v.data) for v in logged]
    by_step = {v.vote.step: v for v in own}
    if Step.VOTE2 in by_step:
        own[-1] = replace(own[-1], votes=(by_step[Step.VOTE1],))
    restored = again.restore(council.epoch, proposal, votes[Step.VOTE1].ballots, own, NOW_NS)
    assert [e.data for e in restored if isinstance(e, SendAgain)] == [v.data for v in own]
    after = settle(council, again, restored)
    assert [e.vote.step for e in after if isinstance(e, CastVote)] == [s for s in before_steps if s not in kept]
    ends = [e for e in (*before, *after) if isinstance(e, End)]
    assert len({(end.outcome, end.commit.value) for end in ends}) == 1
    assert len(ends) == 2


def test_a_ballot_of_the_bus_is_a_ballot_of_the_protocol(council: Council, protocol: Protocol) -> None:
    """The same through real envelopes: what the test above abbreviates."""
    proposal = council.propose()
    protocol.open(proposal, NOW_NS)
    effects: list[Effect] = []
    for data in council.ballots(proposal.leaf, [(who, 0) for who in council.voters[:5]]):
        ballot = read(data, BALLOT, audience="service.consensus")
        effects += protocol.ballot(Received(ballot.body, ballot.sender, ballot.key_id, data), NOW_NS)
    assert isinstance(settle(council, protocol, effects)[-1], End)


def test_a_leader_that_is_slow_but_alive_gets_more_time_for_the_next_decision() -> None:
    """Of four instances this is not the leader; it times out, and only then the leader's proposal comes."""
    council = Council(instances=4)
    me = council.services[0]
    protocol = Protocol(str(me), pace=Pace(first_view_ns=40 * MS))
    protocol.install(council.epoch)
    proposals = (council.propose(proposal_body(council.epoch.digest, subject=str(i))) for i in range(100))
    led_by_another = [p for p in proposals if int.from_bytes(p.leaf[:4], "big") % 4 == 1][:2]
    waited: list[int] = []
    for proposal in led_by_another:
        protocol.open(proposal, NOW_NS)
        for who in council.voters[:5]:
            protocol.ballot(received(council, who, proposal.leaf, 0), NOW_NS)
        after_ms = next(ms for ms in range(1, 1_000) if protocol.tick(NOW_NS + ms * MS))
        waited.append(after_ms)
        value = decide_value(proposal.leaf, 1, choice_digest(proposal.leaf, 1, 0))
        own = read(council.vote(proposal.leaf, None, me, step=Step.TIMEOUT), VOTE, audience="service.consensus")
        protocol.signed(Voted(own.body, me, own.key_id, own.data), NOW_NS)
        for step in (Step.PROPOSE, Step.VOTE2):
            for one in council.services[1:] if step is Step.VOTE2 else council.services[1:2]:
                vote = read(
                    council.vote(proposal.leaf, value, one, step=step), VOTE, audience="service.consensus"
                )
                protocol.signed(Voted(vote.body, one, vote.key_id, vote.data), NOW_NS)
        protocol.announced(proposal.leaf)
    assert waited == [40, 80]
