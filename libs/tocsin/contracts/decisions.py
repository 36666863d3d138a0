"""Epochs, proposals, ballots, votes and what is announced of a decision.

The rules are in ``consensus.md`` of the design and in tocsin.consensus; these are only the shapes. Every
step is the body of an envelope of class *evidence*: the envelope's signature is the step's signature.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from tocsin.contracts.base import Digest, Message, MessageId, Name, Nanoseconds, Text
from tocsin.contracts.identifiers import Role
from tocsin.contracts.response import Command

MAX_PARTICIPANTS = 4096
MIN_PARTICIPANTS = 3
MAX_OPTIONS = 8
MAX_MEMBERS = 1024
"""Members of a mission whom a proposal can name."""
MAX_INSTANCES = 64
MAX_STEP_BYTES = 8_192
"""More than a VOTE1 or VOTE2 takes with the longest signature, of 4,627 bytes."""
MAX_VOTE_BYTES = 393_216
"""More than a step takes that brings the certificate of the 43 of :data:`MAX_INSTANCES`."""
MAX_CHANGED_SEATS = 256
"""Seats that come, and seats that go, in one change of the epoch: a proposal has 64 KiB."""
MAX_MISCONDUCT = 2
MAX_VALUES = 255
"""Different choices that a PROPOSE for another round can name: one byte a seat says which was counted."""
MAX_PROPOSAL_BYTES = 65_536
"""The envelope of a proposal."""
MAX_MISSING = 1024
"""Most names in an announcement: with names of 63 characters they fill a quarter of its 256 KiB."""
MAX_VIEW = 1_000_000
"""The last view of a slot: eight weeks of time-outs at the longest one of 5 s."""

Count = Annotated[int, Field(ge=0, le=MAX_PARTICIPANTS)]
Round = Annotated[int, Field(ge=1, le=10)]
View = Annotated[int, Field(ge=1, le=MAX_VIEW)]


class Participant(Message):
    """One seat: an agent or a consensus instance, and the one key that speaks for it in this epoch."""

    sender: Annotated[str, Field(max_length=512)]
    key_id: Digest
    algorithm: Annotated[int, Field(ge=1, le=3)]


class Epoch(Message):
    """Who decides, and by which numbers. Epoch 0 is signed by the root."""

    number: Annotated[int, Field(ge=0, le=2**32)]
    previous: Digest | None
    trust_domain: Annotated[str, Field(max_length=253)]
    participants: Annotated[
        tuple[Participant, ...], Field(min_length=MIN_PARTICIPANTS, max_length=MAX_PARTICIPANTS)
    ]
    instances: Annotated[tuple[Participant, ...], Field(min_length=1, max_length=MAX_INSTANCES)]
    tolerated_faults: Count
    """f = (n - 1) // 3."""
    quorum: Count
    """q = max(2 * n // 3 + 1, (67 * n + 99) // 100)."""
    instance_quorum: Annotated[int, Field(ge=1, le=MAX_INSTANCES)]
    """Q = 2 * m // 3 + 1."""
    created_ns: Nanoseconds


class EpochInstalled(Message):
    """A consensus instance has taken the epoch."""

    epoch: Digest
    """Leaf hash of the epoch record's content."""
    participants: Count
    quorum: Count
    byzantine_tolerant: bool
    """False where one key holds more than f seats, or f = 0."""
    why_not: Text = ""
    instances: Annotated[int, Field(ge=1, le=MAX_INSTANCES)] = 1
    """m."""
    instance_faults: Annotated[int, Field(ge=0, le=MAX_INSTANCES)] = 0
    """g = (m - 1) // 3: so many of the instances may be hostile."""


class Option(Message):
    """One thing that can be decided."""

    name: Name
    command: Command | None
    """None: do nothing."""
    text: Text
    epoch: Digest | None = None
    """Digest of the epoch that this option makes the next one; see :class:`EpochChange`."""


class Scope(Message):
    """Whom a proposal asks: all agents of the epoch, those of one role, or the members of a mission.

    What only some decide is labelled so, and can command nothing (:mod:`tocsin.evidence.committee`).
    """

    role: Role | None = None
    mission: Name | None = None
    members: Annotated[tuple[Name, ...], Field(max_length=MAX_MEMBERS)] = ()
    """Of the mission, sorted: the proposal itself says who they are, so all who read it count the same."""

    @property
    def label(self) -> str:
        """The scope in words: ``all``, ``role hunter`` or ``mission m-1``."""
        if self.role is not None:
            return f"role {self.role.value}"
        return "all" if self.mission is None else f"mission {self.mission}"


class Equivocation(Message):
    """Proof that a participant broke its word: ``audit.equivocation``.

    Of an agent: two different ballots for one round. Of a consensus instance: two different values in one step of
    one view; or a VOTE2, and in a later view a VOTE1 for another value that rests on no QC1 from the lock's view
    or above. The two envelopes are the proof: whoever reads this verifies them
    (:mod:`tocsin.evidence.misbehaviour`), and need not believe who sent it.
    """

    epoch: Digest
    decision: Digest
    round: Round
    accused: Annotated[str, Field(max_length=512)]
    first: Annotated[bytes, Field(max_length=MAX_VOTE_BYTES)]
    second: Annotated[bytes, Field(max_length=MAX_VOTE_BYTES)]


class RemovalCause(StrEnum):
    """Why a seat goes (consensus.md, "Epochs"). Those that prove themselves are not counted against the daily share."""

    ABSENT = "absent"
    """Its host is gone, or silent."""
    QUARANTINED = "quarantined"
    RENEWED = "renewed"
    """The agent speaks with another key now; it joins with that one in the same change."""
    REVOKED = "revoked"
    """The root has revoked its key."""
    MISCONDUCT = "misconduct"
    """It has signed two ballots for one round; the proof comes along."""


class Removal(Message):
    """A seat that goes."""

    sender: Annotated[str, Field(max_length=512)]
    cause: RemovalCause


class Misconduct(Message):
    """Two ballots that contradict each other, and the public key that signed both."""

    proof: Equivocation
    public_key: Annotated[bytes, Field(max_length=2592)]


class EpochChange(Message):
    """What makes the next epoch of the one that a proposal names. The record itself follows from the two.

    The consensus instances stay as they are: others need the root.
    """

    number: Annotated[int, Field(ge=1, le=2**32)]
    created_ns: Nanoseconds
    joined: Annotated[tuple[Participant, ...], Field(max_length=MAX_CHANGED_SEATS)] = ()
    removed: Annotated[tuple[Removal, ...], Field(max_length=MAX_CHANGED_SEATS)] = ()
    misconduct: Annotated[tuple[Misconduct, ...], Field(max_length=MAX_MISCONDUCT)] = ()
    """For each removal of that cause, in the order of their ids."""


class MembershipWish(Message):
    """Fleet asks the admins to propose the next epoch: ``fleet.membership``."""

    previous: Digest
    """The epoch that fleet holds."""
    change: EpochChange


class EpochDecided(Message):
    """An epoch was decided: ``consensus.epochs.<number>``. It says where the proof is, and is none."""

    number: Annotated[int, Field(ge=1, le=2**32)]
    epoch: Digest
    previous: Digest
    decision: Digest
    """Its certificate stands under this name, in hex, in the object store CERTIFICATES."""


Options = Annotated[tuple[Option, ...], Field(min_length=2, max_length=MAX_OPTIONS)]
"""v_r: what can be chosen in a round."""


class Proposal(Message):
    """Shall we do X about Y. Its id is the leaf hash of the envelope's content that carries it."""

    epoch: Digest
    workflow: MessageId
    subject: Text
    evidence: Annotated[tuple[Text, ...], Field(max_length=32)]
    assessment: Digest
    """SHA-256 of the assessment's body, as it was announced; of the alert's, where an operator asked; else zeros."""
    options: Options
    deadline_ms: Annotated[int, Field(ge=100, le=600_000)]
    """Of each round: so long ballots are waited for."""
    rounds: Round = 1
    """Most rounds: without agreement the options are refined, and the question is asked again."""
    scope: Scope = Scope()
    change: EpochChange | None = None
    """Where the question is the next epoch: what its first option changes (:mod:`tocsin.evidence.succession`)."""


class QuestionWish(Message):
    """What an operator asks the agents, in an alert of theirs: an admin puts it as a proposal, and they decide."""

    subject: Text
    options: Annotated[tuple[Option, ...], Field(min_length=2, max_length=MAX_OPTIONS)]
    """One of them can have a command, where all are asked."""
    evidence: Annotated[tuple[Text, ...], Field(max_length=31)] = ()
    """The proposal's has one line more: who asked."""
    deadline_ms: Annotated[int, Field(ge=100, le=600_000)]
    """Of a round."""
    rounds: Round = 1
    scope: Scope = Scope()


class Choice(StrEnum):
    """The kinds of ballot."""

    OPTION = "option"
    ABSTAIN = "abstain"
    COUNTER = "counter"
    """None of them: this instead. It counts as a ballot, for no option of this round."""


class Ballot(Message):
    """One agent's signed choice in one round."""

    epoch: Digest
    decision: Digest
    round: Round
    choice: Choice
    option: Annotated[int, Field(ge=0, lt=MAX_OPTIONS)] | None
    """Index into the round's options, for choice ``option``."""
    value: Digest
    """H(choice), see tocsin.evidence.choices."""
    reason: Text = ""
    counter: Option | None = None
    """For choice ``counter``: what should be an option of the next round."""


class Step(StrEnum):
    """The steps of a slot."""

    PROPOSE = "propose"
    VOTE1 = "vote1"
    VOTE2 = "vote2"
    TIMEOUT = "timeout"


StepBytes = Annotated[bytes, Field(max_length=MAX_STEP_BYTES)]
"""The envelope of a VOTE1 or VOTE2, in its own bytes."""


class Counted(Message):
    """The ballots from which a PROPOSE for another round has computed its options."""

    values: Annotated[tuple[Digest, ...], Field(max_length=MAX_VALUES)]
    """The different H(choice) among them, sorted."""
    seats: Annotated[bytes, Field(max_length=MAX_PARTICIPANTS)]
    """One byte a seat, in the committee's order: 0, not counted; k, counted for the k-th value."""


class Vote(Message):
    """One consensus instance's step in a slot."""

    step: Step
    epoch: Digest
    decision: Digest
    round: Round
    view: View
    value: Digest | None
    """DECIDE(H(choice)), NEXT(H(options)), CLOSE or INSUFFICIENT, see tocsin.evidence.choices; None for TIMEOUT."""
    high_view: View | None = None
    """View of the QC1 that the step rests on. PROPOSE: hqc. VOTE1: what opens its lock. TIMEOUT: the highest."""
    high_value: Digest | None = None
    """Value of that QC1."""
    certificate: Annotated[tuple[StepBytes, ...], Field(max_length=MAX_INSTANCES)] = ()
    """PROPOSE, TIMEOUT: the Q VOTE1 envelopes of that QC1."""
    counted: Counted | None = None
    """PROPOSE of NEXT without a QC1: the ballots that a voter recomputes it from."""


PublicKey = Annotated[bytes, Field(max_length=2592)]
"""A raw public key; the longest is of ML-DSA-87 (FIPS 204, table 2)."""


class RoundOpened(Message):
    """A round after the first begins: agents ballot again. Whoever reads it verifies the commit, not its sender.

    Subject ``consensus.round.<decision>``.
    """

    epoch: Digest
    decision: Digest
    round: Annotated[int, Field(ge=2, le=10)]
    options: Options
    """v_r, in the order of their support in the round before; ballots name them by index."""
    commit: Annotated[tuple[StepBytes, ...], Field(min_length=1, max_length=MAX_INSTANCES)]
    """Q VOTE2 envelopes of the round before, on NEXT(H(options))."""
    keys: Annotated[tuple[PublicKey, ...], Field(max_length=MAX_INSTANCES)]
    """Public keys of who signed them; they count only as far as the epoch names them."""


class BallotsWanted(Message):
    """Ballots of a round have not come: the agents that have cast them send them again, in the same bytes.

    Subject ``consensus.wanted.<decision>``. Who has not heard of the question finds it here.
    """

    decision: Digest
    epoch: Digest
    round: Round
    seats: Annotated[bytes, Field(max_length=MAX_PARTICIPANTS // 8)]
    """Which of the epoch's participants: bit i of byte i // 8 is the i-th, the lowest bit first."""
    proposal: Annotated[bytes, Field(max_length=MAX_PROPOSAL_BYTES)]
    """The proposal's envelope."""

    def wants(self, index: int) -> bool:
        """Tell whether the ballot of the epoch's participant with this index is wanted."""
        return index // 8 < len(self.seats) and bool(self.seats[index // 8] >> index % 8 & 1)


class Lacking(Message):
    """An instance asks another for what it lacks of a decision."""

    decision: Digest
    proposal: bool
    """Whether it lacks the proposal too; else the ballots alone."""


class Shown(Message):
    """What an instance shows another of a decision: one page. All of it is verified on arrival."""

    decision: Digest
    proposal: Annotated[bytes, Field(max_length=MAX_PROPOSAL_BYTES)] | None
    """The proposal's envelope."""
    ballots: Annotated[
        tuple[Annotated[bytes, Field(max_length=16_384)], ...], Field(max_length=MAX_PARTICIPANTS)
    ]
    commit: Annotated[tuple[StepBytes, ...], Field(max_length=MAX_INSTANCES)]
    """Q VOTE2 envelopes, or none."""
    keys: Annotated[tuple[PublicKey, ...], Field(max_length=MAX_PARTICIPANTS)]
    """Public keys of who signed what is on this page; they count only as far as the epoch names them."""
    opened: RoundOpened | None = None
    """What began the round that this page is about; None for the first."""
    following: Annotated[tuple[Option, ...], Field(max_length=MAX_OPTIONS)] = ()
    """v_{r+1} as far as the sender knows it, or none: what was committed, or is proposed, names its digest."""


class Outcome(StrEnum):
    """How a decision ended."""

    DECIDED = "decided"
    CLOSED = "closed"
    """No option had a quorum when the last round ended."""
    INSUFFICIENT = "insufficient_participants"
    """Fewer than a quorum had balloted when the last round's deadline passed."""


class DecisionAnnounced(Message):
    """A decision ended: subject ``consensus.decision.<id>``, stream DECISIONS."""

    decision: Digest
    epoch: Digest
    outcome: Outcome
    why: Text
    option: Option | None
    certificate: Digest | None
    """SHA-256 of the certificate's bytes, as its announcer made it; another one of the same decision proves as much."""
    certificate_bytes: Annotated[int, Field(ge=0)]
    object_name: Annotated[str, Field(max_length=80)] | None
    """Name in the object store CERTIFICATES."""
    round: Round
    """In which it ended."""
    options: Annotated[tuple[Option, ...], Field(max_length=MAX_OPTIONS)] = ()
    """What that round asked, if it was none of the first; the first one's are the proposal's."""
    scope: Annotated[str, Field(max_length=80)] = "all"
    """Whom it asked; see :attr:`Scope.label`."""
    participants: Count
    quorum: Count
    ballots_for: Count
    ballots_received: Count
    missing: Annotated[tuple[Name, ...], Field(max_length=MAX_MISSING)]
    """Participants whose ballot had not arrived when the outcome was reached: the first ones by name."""
    agreement: Annotated[float, Field(ge=0, le=1)] = 0.0
    """``ballots_for / ballots_received``: the share of those who took part that is for what most are for."""
    elapsed_ms: Annotated[float, Field(ge=0)]
    commit: Annotated[tuple[StepBytes, ...], Field(max_length=MAX_INSTANCES)] = ()
    """The Q VOTE2 envelopes: that it is over can be checked, also where it closed without a certificate."""
    keys: Annotated[tuple[PublicKey, ...], Field(max_length=MAX_INSTANCES + 1)] = ()
    """Public keys of who signed the commit, who announces, and who proposed: as far as the epoch names them."""
    proposal: Annotated[bytes, Field(max_length=MAX_PROPOSAL_BYTES)] = b""
    """The proposal's envelope: what was asked and by whom, bound to the decision's id, which is its leaf hash."""
