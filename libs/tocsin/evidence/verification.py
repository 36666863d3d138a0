"""Verify a decision's certificate with the trust root and nothing else: no broker, no clock, no service.

In this order, and nothing is accepted before all of it holds:

1. the root signed the epoch record, and each epoch after it was decided in the one before it (:func:`follow`, by
   rules 2 to 6 itself); n, f, q and Q are recomputed from its seats;
2. the keys are those that the record binds, each once, and none that nobody uses;
3. the proposal names this epoch and is signed by an admin with a seat in it; its leaf is the decision's id; who
   decides follows from its scope (:mod:`tocsin.evidence.committee`), and n, f and q are theirs;
4. where it was decided after the first round: its options are within the bounds, and Q distinct instances committed
   NEXT of exactly these in the round before, in one view;
5. every ballot is of this epoch, decision and round, for one and the same option, by one of them with the
   key bound to it, no two of one participant; there are q;
6. every vote is a VOTE2 of this epoch, decision and round, on one view, for DECIDE(H(choice)) of that option,
   by distinct instances with their keys; there are Q;
7. every signature in it verifies, also those beyond a quorum. Ballots of one host may share a batch's
   signature, which is then verified once.

Does not prove: that a key was not stolen (give ``revocations`` to have that reported), nor that the decision
was wise, nor that no participant signed two ballots, nor that the options of a later round were computed by the rule:
that is what the quorum of instances says, of which g + 1 honest ones have recomputed it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain, repeat
from types import MappingProxyType
from typing import TypeAlias

from tocsin.bus.envelope import decode_body, encode_body
from tocsin.contracts.catalogue import BALLOT, CONSENSUS_PROPOSAL, VOTE
from tocsin.contracts.decisions import Ballot, Option, Participant, Proposal, Step, Vote
from tocsin.contracts.errors import InvalidInputError, UntrustedError
from tocsin.contracts.proposers import check_proposer
from tocsin.contracts.response import Command
from tocsin.crypto import Algorithm, BatchVerifier, SignatureBackend, TrustStore, Verifier, select_backend
from tocsin.evidence.bundle import Bundle, is_bundle
from tocsin.evidence.certificate import DecisionCertificate
from tocsin.evidence.choices import Question, check_ballot, decide_value
from tocsin.evidence.committee import committee_of
from tocsin.evidence.epochs import InstalledEpoch, open_epoch
from tocsin.evidence.reading import Evidence, read
from tocsin.evidence.rounds import open_opening
from tocsin.evidence.succession import INSTALL, succession_of

CONSENSUS_AUDIENCE = "service.consensus"
NOTHING_BELIEVED: Mapping[bytes, InstalledEpoch] = MappingProxyType({})
VerifierOf: TypeAlias = Callable[[bytes], Verifier | None]
"""Returns the verifier of a key by the key's id, which is its SHA-256."""


@dataclass(frozen=True, slots=True)
class VerifiedDecision:
    """What a certificate proves."""

    decision: bytes
    option: Option
    proposal: Proposal
    proposer: str
    proposed_ns: int
    """By the proposer's clock, as it signed."""
    epoch: int
    epoch_digest: bytes
    chain: int
    """Epochs that were decided one after another since the root signed one; 0: the root signed this one."""
    round: int
    view: int
    scope: str
    """Who decided: ``all``, or the committee's label."""
    participants: int
    tolerated_faults: int
    quorum: int
    voters: tuple[str, ...]
    """Participants whose ballots were verified, in order."""
    instances: tuple[str, ...]
    """Consensus instances whose VOTE2 were verified, in order."""
    instances_total: int
    instance_quorum: int
    instance_faults: int
    """g: so many hostile instances are tolerated; 0 with fewer than four."""
    byzantine_tolerant: bool
    why_not: str
    certificate_digest: bytes
    signatures_verified: int
    """Distinct signatures; ballots that share a batch's signature share one."""
    revocation: str
    """``unknown`` where no list was given, else ``none`` or ``revoked``."""
    revoked: tuple[str, ...]
    """Those among voters, instances and proposer whose key is on the list."""

    @property
    def ballots_verified(self) -> int:
        """Ballots, each of another participant."""
        return len(self.voters)

    @property
    def command(self) -> Command | None:
        """What was decided; None: to do nothing."""
        return self.option.command

    def view_for_auditors(self) -> dict[str, object]:
        """Return everything as plain values: digests in hex, the command as OpenC2."""
        return {
            "decision": self.decision.hex(),
            "subject": self.proposal.subject,
            "option": self.option.name,
            "text": self.option.text,
            "command": None if self.command is None else self.command.openc2(),
            "workflow": self.proposal.workflow.hex(),
            "assessment": self.proposal.assessment.hex(),
            "evidence": list(self.proposal.evidence),
            "proposer": self.proposer,
            "epoch": {"number": self.epoch, "digest": self.epoch_digest.hex(), "chain": self.chain},
            "round": self.round,
            "view": self.view,
            "scope": self.scope,
            "participants": self.participants,
            "tolerated_faults": self.tolerated_faults,
            "quorum": self.quorum,
            "ballots_verified": self.ballots_verified,
            "voters": list(self.voters),
            "instances": list(self.instances),
            "instances_total": self.instances_total,
            "instance_quorum": self.instance_quorum,
            "instance_faults": self.instance_faults,
            "byzantine_tolerant": self.byzantine_tolerant,
            "why_not_byzantine_tolerant": self.why_not or None,
            "signatures_verified": self.signatures_verified,
            "revocation": self.revocation,
            "revoked": list(self.revoked),
            "certificate_sha256": self.certificate_digest.hex(),
        }

    def json(self, *, indent: int | None = 2) -> str:
        """Return :meth:`view_for_auditors` as JSON."""
        return json.dumps(self.view_for_auditors(), indent=indent)


def verify(
    data: bytes,
    root_pem: bytes,
    *,
    links: Sequence[bytes] = (),
    believed: Mapping[bytes, InstalledEpoch] = NOTHING_BELIEVED,
    revocations: Collection[bytes] | None = None,
    backend: SignatureBackend | None = None,
    batches: BatchVerifier | None = None,
    verifier_of: VerifierOf | None = None,
) -> VerifiedDecision:
    """Verify a certificate, alone or with the chain of its epoch in a bundle.

    Args:
        data: its bytes, or those of a bundle; any bytes end in a value or in one of our errors.
        root_pem: the trust root's certificate.
        links: the certificates of the decisions that its chain names, in that order, if no bundle brings them.
        believed: epochs that were verified before, by digest; a decision of one of them needs no links.
        revocations: ids of keys known to be revoked. They are reported, and change nothing else: within a
            decision the epoch record alone judges (consensus.md, "Epochs").
        backend: who computes signatures; by default the one that this machine selects.
        batches: a process's own memory of batch signatures that it has verified in full.
        verifier_of: a process's own memory of keys, by id: reading one takes some 20 microseconds.

    Raises:
        InvalidInputError: malformed, or a rule is broken; the reason says which.
        UntrustedError: a signature, key or seat is not what the epoch record says; the reason says which.
        DeniedError: ``sender_not_allowed`` or ``proposer_not_allowed``.
    """
    backend = backend or select_backend()
    if is_bundle(data):
        bundle = Bundle.decode(data)
        data, links = bundle.certificate, bundle.links
    certificate = DecisionCertificate.decode(data)
    if batches is None:  # an empty one is false
        batches = _memory_for(certificate)
    epoch = believed.get(epoch_named(certificate)) if believed else None
    if epoch is None:
        epoch = believe(certificate, links, root_pem, backend, batches)
    return _verify(certificate, data, epoch, revocations, backend, batches, verifier_of)


def verify_within(
    data: bytes,
    epoch: InstalledEpoch,
    *,
    revocations: Collection[bytes] | None = None,
    backend: SignatureBackend | None = None,
    batches: BatchVerifier | None = None,
    verifier_of: VerifierOf | None = None,
    was_read: Sequence[Evidence[Ballot] | None] = (),
) -> VerifiedDecision:
    """Verify a certificate of an epoch that is believed already.

    ``was_read`` are ballots that :func:`~tocsin.evidence.reading.read` has returned before, in the certificate's order:
    those of the same bytes are not read again, which takes longer than anything about them but their signatures. The
    rest is as of :func:`verify`.

    Raises:
        TocsinError: as :func:`verify`.
    """
    certificate = DecisionCertificate.decode(data)
    batches = _memory_for(certificate) if batches is None else batches
    backend = backend or select_backend()
    return _verify(certificate, data, epoch, revocations, backend, batches, verifier_of, was_read)


def _memory_for(certificate: DecisionCertificate) -> BatchVerifier:
    return BatchVerifier(len(certificate.ballots) + len(certificate.votes) + len(certificate.before) + 2)


def _verify(
    certificate: DecisionCertificate,
    data: bytes,
    epoch: InstalledEpoch,
    revocations: Collection[bytes] | None,
    backend: SignatureBackend,
    batches: BatchVerifier,
    verifier_of: VerifierOf | None,
    was_read: Sequence[Evidence[Ballot] | None] = (),
) -> VerifiedDecision:
    if (certificate.epoch, certificate.chain) != (epoch.data, epoch.chain):
        raise InvalidInputError("the certificate names another chain to its epoch", reason="wrong_chain")
    case = _Case(certificate, epoch, was_read)
    full = {(e.key_id, batches.root_of(e.leaf, e.envelope.proof)) for _, e in case.signed()}
    verifiers = _verifiers(certificate, case, backend, verifier_of)
    for seat, evidence in case.signed():
        evidence.verify(verifiers[seat.key_id], batches)
    return case.verified(data, signatures=len(full) + 1, revocations=revocations)


def believe(
    certificate: DecisionCertificate,
    links: Sequence[bytes],
    root_pem: bytes,
    backend: SignatureBackend,
    batches: BatchVerifier | None = None,
) -> InstalledEpoch:
    """Return the epoch of a certificate: from the root's record, decision by decision.

    Raises:
        InvalidInputError: ``missing_link``, ``wrong_order`` or ``wrong_link``: the links are not those that the chain
            names; or as :func:`follow`.
        UntrustedError: the root did not sign the record; or as :func:`follow`.
    """
    given = tuple(named(link) for link in links)
    if given != certificate.chain:
        if sorted(given) == sorted(certificate.chain):
            raise InvalidInputError("the chain's links are in another order", reason="wrong_order")
        if missing := set(certificate.chain) - set(given):
            raise UntrustedError(
                f"{len(missing)} of the {len(certificate.chain)} links to the root are missing",
                reason="missing_link",
                advice="export it with its chain: tocsin decision export",
            )
        raise InvalidInputError("a link is of a decision that the chain does not name", reason="wrong_link")
    epoch = open_epoch(certificate.epoch, TrustStore(root_pem, backend), batches)
    for link in links:
        epoch = follow(epoch, link, backend, batches)
    return epoch


def follow(
    epoch: InstalledEpoch, link: bytes, backend: SignatureBackend, batches: BatchVerifier | None = None
) -> InstalledEpoch:
    """Return the epoch that a decision of another one has made.

    Args:
        epoch: is believed.
        link: the decision's certificate.
        backend: who computes signatures.
        batches: a process's own memory of batch signatures that it has verified in full.

    Raises:
        InvalidInputError: ``no_next_epoch``: it decided something else; or as :func:`succession_of`.
        TocsinError: as :func:`verify_within`.
    """
    decided = verify_within(link, epoch, backend=backend, batches=batches)
    after = succession_of(decided.proposal, decided.decision, epoch, backend)
    if after is None or decided.option != decided.proposal.options[INSTALL]:
        raise InvalidInputError("a link of the chain decides on no epoch", reason="no_next_epoch")
    return after.epoch


def named(link: bytes) -> bytes:
    """Return the decision that a certificate says it is of; nothing is proven by that.

    Raises:
        TocsinError: it is no certificate.
    """
    certificate = DecisionCertificate.decode(link)
    return read(certificate.proposal, CONSENSUS_PROPOSAL, audience="all").leaf


def epoch_named(certificate: DecisionCertificate) -> bytes:
    """Return the digest of the epoch that a certificate's proposal names.

    Raises:
        TocsinError: its proposal is none.
    """
    return read(certificate.proposal, CONSENSUS_PROPOSAL, audience="all").body.epoch


class _Case:
    """A certificate whose statements fit together; its signatures are still to be verified."""

    def __init__(
        self,
        certificate: DecisionCertificate,
        epoch: InstalledEpoch,
        was_read: Sequence[Evidence[Ballot] | None] = (),
    ) -> None:
        self.epoch = epoch
        self.proposal = read(certificate.proposal, CONSENSUS_PROPOSAL, audience="all")
        self.proposer = check_proposal(self.proposal, epoch)
        self.committee = committee_of(self.proposal.body, epoch)
        self.decision = self.proposal.leaf
        self.ballots = [
            one if one is not None and one.data == data else read(data, BALLOT, audience=CONSENSUS_AUDIENCE)
            for data, one in zip(certificate.ballots, chain(was_read, repeat(None)), strict=False)
        ]
        self.voters = [self._check_ballot(ballot) for ballot in self.ballots]
        self.round = self._one_round()
        self.question, self.before = self._open_round(certificate)
        self.openers = [epoch.instance(vote.sender, vote.key_id) for vote in self.before]
        self.option, self.choice = self._one_choice()
        self.votes = [read(data, VOTE, audience=CONSENSUS_AUDIENCE) for data in certificate.votes]
        self.instances = [self._check_vote(vote) for vote in self.votes]
        self.view = self._one_view()

    def signed(self) -> Iterator[tuple[Participant, Evidence[Proposal] | Evidence[Ballot] | Evidence[Vote]]]:
        """Return every envelope but the epoch's, with the seat that must have signed it."""
        yield self.proposer, self.proposal
        yield from zip(self.openers, self.before, strict=True)
        yield from zip(self.voters, self.ballots, strict=True)
        yield from zip(self.instances, self.votes, strict=True)

    def verified(
        self, data: bytes, *, signatures: int, revocations: Collection[bytes] | None
    ) -> VerifiedDecision:
        epoch = self.epoch
        revoked = {seat.sender for seat, _ in self.signed() if seat.key_id in (revocations or ())}
        return VerifiedDecision(
            decision=self.decision,
            option=self.question.options[self.option],
            proposal=self.proposal.body,
            proposer=self.proposer.sender,
            proposed_ns=self.proposal.envelope.content.issued_at,
            epoch=epoch.epoch.number,
            epoch_digest=epoch.digest,
            chain=len(epoch.chain),
            round=self.round,
            view=self.view,
            scope=self.committee.label,
            participants=self.committee.quorum.participants,
            tolerated_faults=self.committee.quorum.tolerated_faults,
            quorum=self.committee.quorum.needed,
            voters=tuple(sorted(seat.sender for seat in self.voters)),
            instances=tuple(sorted(seat.sender for seat in self.instances)),
            instances_total=len(epoch.instances),
            instance_quorum=epoch.instance_quorum,
            instance_faults=epoch.instance_faults,
            byzantine_tolerant=not self.committee.why_not,
            why_not=self.committee.why_not,
            certificate_digest=sha256(data).digest(),
            signatures_verified=signatures,
            revocation="unknown" if revocations is None else "revoked" if revoked else "none",
            revoked=tuple(sorted(revoked)),
        )

    def _check_ballot(self, ballot: Evidence[Ballot]) -> Participant:
        self._check_place(ballot.body)
        return self.committee.seat(ballot.sender, ballot.key_id)

    def _one_round(self) -> int:
        """Return the round of all ballots; there is a quorum of distinct participants."""
        _refuse_twice((seat.sender for seat in self.voters), "duplicate_participant")
        needed = self.committee.quorum.needed
        if len(self.ballots) < needed:
            raise UntrustedError(f"{len(self.ballots)} ballots, the quorum is {needed}", reason="no_quorum")
        first = self.ballots[0].body
        if any(ballot.body.round != first.round for ballot in self.ballots):
            raise InvalidInputError("the ballots are of several rounds", reason="wrong_round")
        return first.round

    def _open_round(self, certificate: DecisionCertificate) -> tuple[Question, list[Evidence[Vote]]]:
        """Return what the round asked, and the votes that say so: none for the first."""
        if self.round == 1:
            if certificate.options or certificate.before:
                raise InvalidInputError("the first round has the proposal's options", reason="wrong_options")
            return Question.first(self.decision, self.proposal.body), []
        options = tuple(decode_body(Option, data) for data in certificate.options)
        if len(options) < 2 or tuple(map(encode_body, options)) != certificate.options:
            raise InvalidInputError("its options are no two or more in their one encoding", reason="malformed")
        opening, votes = open_opening(
            self.decision,
            self.round,
            options,
            certificate.before,
            self.proposal.body,
            self.proposal.sender,
            self.epoch,
        )
        return opening.question, votes

    def _one_choice(self) -> tuple[int, bytes]:
        """Return the option and H(choice) of all ballots."""
        chosen = {ballot.body.value: check_ballot(ballot.body, self.question) for ballot in self.ballots}
        if len(chosen) != 1:
            raise InvalidInputError("the ballots are for several choices", reason="several_choices")
        ((choice, option),) = chosen.items()
        if not isinstance(option, int):
            raise InvalidInputError("abstentions and counter-proposals decide nothing", reason="abstention")
        return option, choice

    def _check_vote(self, vote: Evidence[Vote]) -> Participant:
        self._check_place(vote.body)
        if vote.body.step is not Step.VOTE2:
            raise InvalidInputError(f"a {vote.body.step.value} commits nothing", reason="wrong_step")
        if vote.body.round != self.round:
            raise InvalidInputError("a vote is of another round than the ballots", reason="wrong_round")
        if vote.body.value != decide_value(self.decision, self.round, self.choice):
            raise InvalidInputError("a vote is not for the ballots' choice", reason="wrong_value")
        return self.epoch.instance(vote.sender, vote.key_id)

    def _one_view(self) -> int:
        """Return the view of all votes; there is a quorum of distinct instances."""
        _refuse_twice((seat.sender for seat in self.instances), "duplicate_instance")
        needed = self.epoch.instance_quorum
        if len(self.votes) < needed:
            raise UntrustedError(f"{len(self.votes)} votes, the quorum is {needed}", reason="no_commit")
        views = {vote.body.view for vote in self.votes}
        if len(views) != 1:
            raise InvalidInputError("the votes are of several views", reason="several_views")
        return views.pop()

    def _check_place(self, body: Ballot | Vote) -> None:
        if body.epoch != self.epoch.digest:
            raise InvalidInputError("a ballot or vote is of another epoch", reason="wrong_epoch")
        if body.decision != self.decision:
            raise InvalidInputError("a ballot or vote is of another decision", reason="wrong_decision")


def check_proposal(proposal: Evidence[Proposal], epoch: InstalledEpoch) -> Participant:
    """Return the seat of a proposal's sender: of an agent that may propose this, in the epoch that it names.

    Raises:
        InvalidInputError: ``wrong_epoch``; ``duplicate_option``: two options have one name.
        DeniedError: ``proposer_not_allowed``.
        UntrustedError: ``not_a_participant`` or ``wrong_key``.
    """
    if proposal.body.epoch != epoch.digest:
        raise InvalidInputError("the proposal is of another epoch", reason="wrong_epoch")
    if len({option.name for option in proposal.body.options}) < len(proposal.body.options):
        raise InvalidInputError("two options of the proposal have one name", reason="duplicate_option")
    check_proposer(proposal.sender, proposal.body)
    return epoch.seat(proposal.sender, proposal.key_id)


def _verifiers(
    certificate: DecisionCertificate, case: _Case, backend: SignatureBackend, known: VerifierOf | None = None
) -> dict[bytes, Verifier]:
    """Return the verifier of each key that the epoch binds to who speaks here."""
    wanted = {seat.key_id: Algorithm(seat.algorithm) for seat, _ in case.signed()}
    given = {sha256(key).digest(): key for key in certificate.keys}
    if len(given) != len(certificate.keys) or given.keys() - wanted.keys():
        raise InvalidInputError("it brings a key twice, or one that nobody uses", reason="unused_key")
    if missing := wanted.keys() - given.keys():
        raise InvalidInputError(f"{len(missing)} public keys are missing", reason="missing_key")
    verifiers: dict[bytes, Verifier] = {}
    for key_id, key in given.items():
        held = None if known is None else known(key_id)
        fits = held is not None and held.algorithm == wanted[key_id]
        verifiers[key_id] = held if fits and held is not None else backend.verifier(wanted[key_id], key)
    return verifiers


def _refuse_twice(names: Iterator[str], reason: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UntrustedError(f"{name} speaks twice", reason=reason)
        seen.add(name)
