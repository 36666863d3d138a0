"""How a decision ended, as evidence: what an announcement or a result says, and the commit in it that says so.

Whoever holds the epoch can check it, and need not believe the instance that tells it: agents, instances, operators.
What is checked is the outcome, the option and what was asked. How many ballots came, who is missing and how long it
took is the word of who tells it; for the ballots themselves there is the certificate. Whether the proposal's own
signature holds was for the instances to see: its content is what the decision's id is the hash of.
"""

from __future__ import annotations

from tocsin.contracts.catalogue import CONSENSUS_PROPOSAL
from tocsin.contracts.decisions import DecisionAnnounced, Option, Outcome, Vote
from tocsin.contracts.errors import InvalidInputError
from tocsin.crypto import BatchVerifier, SignatureBackend
from tocsin.evidence.choices import Question
from tocsin.evidence.epochs import InstalledEpoch
from tocsin.evidence.reading import Evidence, read
from tocsin.evidence.votes import KeyOf, open_commit, verify_steps


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

    Raises:
        TocsinError: as :func:`open_end` and :func:`~tocsin.evidence.votes.verify_steps`.
    """
    verify_steps(open_end(announced, epoch), epoch, key_of, backend, batches)


def _ends(question: Question) -> dict[bytes, tuple[Outcome, Option | None]]:
    """Return how a decision can end in this round, by the value that commits it."""
    decided = {question.decide(i): (Outcome.DECIDED, option) for i, option in enumerate(question.options)}
    return decided | {
        question.close: (Outcome.CLOSED, None),
        question.insufficient: (Outcome.INSUFFICIENT, None),
    }
