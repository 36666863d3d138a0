"""How a round after the first began, as evidence: its options, and the commit of the round before that names them.

Whoever holds the epoch can check it, and need not believe who shows it: instances, agents, auditors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from tocsin.bus.envelope import encode_body
from tocsin.contracts.catalogue import VOTE
from tocsin.contracts.decisions import Option, Proposal, RoundOpened, Vote
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.identifiers import SpiffeId
from tocsin.contracts.proposers import check_proposer
from tocsin.crypto import BatchVerifier, SignatureBackend, key_id
from tocsin.evidence.choices import Question, next_value
from tocsin.evidence.committee import committee_of
from tocsin.evidence.epochs import EPOCH_AUDIENCE, InstalledEpoch
from tocsin.evidence.reading import Evidence, read
from tocsin.evidence.votes import KeyOf, open_commit, verify_steps


@dataclass(frozen=True)
class Opening:
    """What a round asks, and the Q VOTE2 by which it began; none for the first round."""

    question: Question
    before: tuple[bytes, ...] = field(default=(), repr=False)

    @cached_property
    def signers(self) -> frozenset[bytes]:
        """Ids of the keys of who signed."""
        return frozenset(read(data, VOTE, audience=EPOCH_AUDIENCE).key_id for data in self.before)

    @property
    def encoded_options(self) -> tuple[bytes, ...]:
        """The options as a certificate has them; none for the first round."""
        return tuple(map(encode_body, self.question.options)) if self.before else ()

    def body(self, epoch: InstalledEpoch, key_of: KeyOf) -> RoundOpened:
        """Return it as it travels, with the public keys of who signed; for a round after the first."""
        keys = [key for one in sorted(self.signers) if (key := key_of(one)) is not None]
        return RoundOpened(
            epoch=epoch.digest,
            decision=self.question.decision,
            round=self.question.round,
            options=self.question.options,
            commit=self.before,
            keys=tuple(keys),
        )


def open_opening(
    decision: bytes,
    round_number: int,
    options: tuple[Option, ...],
    commit: Sequence[bytes],
    proposal: Proposal,
    proposer: SpiffeId,
    epoch: InstalledEpoch,
) -> tuple[Opening, list[Evidence[Vote]]]:
    """Check all of an opening but the signatures; return it with the VOTE2 that are to be verified.

    Raises:
        InvalidInputError: ``wrong_round``: the proposal allows no such round; ``wrong_options``: the commit names
            others; ``committee_cannot_command``.
        DeniedError: ``proposer_not_allowed``: an option of this round is not for the proposer to put to the vote.
        TocsinError: as :func:`~tocsin.evidence.votes.open_commit`.
    """
    if not 2 <= round_number <= proposal.rounds:
        raise InvalidInputError(f"round {round_number} of {proposal.rounds}", reason="wrong_round")
    asked = proposal.model_copy(update={"options": options})
    check_proposer(proposer, asked)
    committee_of(asked, epoch)
    question = Question(decision, round_number, options)
    votes = open_commit(commit, epoch, decision, round_number - 1)
    if votes[0].body.value != next_value(decision, round_number - 1, question.digest):
        raise InvalidInputError("the round before has not committed these options", reason="wrong_options")
    return Opening(question, tuple(commit)), votes


def verify_opened(
    opened: RoundOpened,
    proposal: Proposal,
    proposer: SpiffeId,
    epoch: InstalledEpoch,
    key_of: KeyOf,
    backend: SignatureBackend,
    batches: BatchVerifier,
) -> Opening:
    """Verify that a round has begun; call it in a worker thread.

    Raises:
        TocsinError: ``wrong_epoch``, or as :func:`open_opening` and
            :func:`~tocsin.evidence.votes.verify_steps`.
    """
    if opened.epoch != epoch.digest or proposal.epoch != epoch.digest:
        raise InvalidInputError("the round is of another epoch", reason="wrong_epoch")
    opening, votes = open_opening(
        opened.decision, opened.round, opened.options, opened.commit, proposal, proposer, epoch
    )
    brought = {key_id(key): key for key in opened.keys}
    verify_steps(votes, epoch, lambda one: brought.get(one) or key_of(one), backend, batches)
    return opening
