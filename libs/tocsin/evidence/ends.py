"""How a decision ended, as evidence: what an announcement or a result says, and the commit in it that says so.

Whoever holds the epoch can check it, and need not believe the instance that tells it: agents, instances, operators.
What is checked is the outcome, the option and what was asked. How many ballots came, who is missing and how long it
took is the word of who tells it; for the ballots themselves there is the certificate.
"""

from __future__ import annotations

from collections.abc import Callable

from tocsin.contracts.catalogue import CONSENSUS_PROPOSAL, DECISION
from tocsin.contracts.decisions import DecisionAnnounced, Option, Outcome, Vote
from tocsin.contracts.errors import InvalidInputError, UntrustedError
from tocsin.crypto import Algorithm, BatchVerifier, SignatureBackend, key_id
from tocsin.evidence.choices import Question
from tocsin.evidence.epochs import InstalledEpoch
from tocsin.evidence.reading import Evidence, read
from tocsin.evidence.verification import check_proposal
from tocsin.evidence.votes import KeyOf, open_commit, verify_steps

ANNOUNCED_TO = "event"
"""The audience of an announcement."""


def open_end(announced: DecisionAnnounced, epoch: InstalledEpoch) -> list[Evidence[Vote]]:
    """Check all of an end but the signatures; return the VOTE2 that are to be verified.

    Raises:
        InvalidInputError: ``wrong_epoch``; ``wrong_decision``: it comes with another proposal; ``wrong_outcome``: it
            says what was not committed.
        TocsinError: as :func:`~tocsin.evidence.votes.open_commit`.
    """
    if announced.epoch != epoch.digest:
        raise InvalidInputError("the decision is of another epoch", reason="wrong_epoch")
    proposal = read(announced.proposal, CONSENSUS_PROPOSAL, audience="all")
    if proposal.leaf != announced.decision:
        raise InvalidInputError("an announcement with another proposal", reason="wrong_decision")
    if announced.round == 1:
        question = Question.first(announced.decision, proposal.body)
    else:
        question = Question(announced.decision, announced.round, announced.options)
    votes = open_commit(announced.commit, epoch, announced.decision, announced.round)
    if (announced.outcome, announced.option) != _ends(question).get(votes[0].body.value or b""):
        raise InvalidInputError("it announces what was not committed", reason="wrong_outcome")
    return votes


def verify_end(
    announced: DecisionAnnounced,
    epoch: InstalledEpoch,
    key_of: KeyOf,
    backend: SignatureBackend,
    batches: BatchVerifier,
) -> None:
    """Verify that a decision ended as it is said; call it in a worker thread.

    Args:
        announced: what is said.
        epoch: the one that it names.
        key_of: public keys that are known; those that it brings are used first.
        backend: who computes signatures.
        batches: those that were verified before.

    Raises:
        TocsinError: as :func:`open_end` and :func:`~tocsin.evidence.votes.verify_steps`.
    """
    brought = _brought(announced)
    verify_steps(
        open_end(announced, epoch), epoch, lambda one: brought.get(one) or key_of(one), backend, batches
    )


def verify_announcement(
    data: bytes, epoch_of: Callable[[bytes], InstalledEpoch | None], backend: SignatureBackend
) -> Evidence[DecisionAnnounced]:
    """Verify an announcement of any age, by what it brings and its epoch alone; call it in a worker thread.

    Args:
        data: its envelope.
        epoch_of: an epoch that is believed, by its digest.
        backend: who computes signatures.

    Raises:
        InvalidInputError: it is none; ``unknown_epoch``.
        UntrustedError: ``not_an_instance``, ``wrong_key`` or ``unknown_key``: who signed it could not announce it.
        TocsinError: as :func:`verify_end`, and :func:`~tocsin.evidence.verification.check_proposal`.
    """
    told = read(data, DECISION, audience=ANNOUNCED_TO)
    epoch = epoch_of(told.body.epoch)
    if epoch is None:
        raise InvalidInputError("of an epoch that is not known here", reason="unknown_epoch")
    proposal = read(told.body.proposal, CONSENSUS_PROPOSAL, audience="all")
    batches = BatchVerifier(len(epoch.instances) + 1)
    signed = (told, epoch.instance(told.sender, told.key_id)), (proposal, check_proposal(proposal, epoch))
    brought = _brought(told.body)
    for evidence, seat in signed:
        if (key := brought.get(seat.key_id)) is None:
            raise UntrustedError(f"the key of {seat.sender} is not known", reason="unknown_key")
        evidence.verify(backend.verifier(Algorithm(seat.algorithm), key), batches)
    verify_end(told.body, epoch, lambda _: None, backend, batches)
    return told


def _brought(announced: DecisionAnnounced) -> dict[bytes, bytes]:
    return {key_id(key): key for key in announced.keys}


def _ends(question: Question) -> dict[bytes, tuple[Outcome, Option | None]]:
    """Return how a decision can end in this round, by the value that commits it."""
    decided = {question.decide(i): (Outcome.DECIDED, option) for i, option in enumerate(question.options)}
    return decided | {
        question.close: (Outcome.CLOSED, None),
        question.insufficient: (Outcome.INSUFFICIENT, None),
    }
