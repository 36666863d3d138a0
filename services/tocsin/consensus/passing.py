"""What an instance shows another: pages below the broker's largest payload, verified on arrival.

A page is complete in itself: it has the public keys of who signed what is on it, which count as far as the epoch
binds them. Opening one verifies signatures, so it belongs into a worker thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tocsin.consensus.effects import Show, Voted
from tocsin.consensus.tally import Received
from tocsin.contracts.catalogue import BALLOT, CONSENSUS_PROPOSAL
from tocsin.contracts.decisions import Option, Proposal, Shown, Vote
from tocsin.contracts.errors import InvalidInputError, UntrustedError
from tocsin.crypto import Algorithm, BatchVerifier, SignatureBackend, key_id
from tocsin.evidence.epochs import InstalledEpoch
from tocsin.evidence.reading import Evidence, read
from tocsin.evidence.rounds import Opening, verify_opened
from tocsin.evidence.verification import CONSENSUS_AUDIENCE, check_proposal
from tocsin.evidence.votes import KeyOf, open_commit, verify_steps

PAGE_BYTES = 400 * 1024
"""Of ballots and their keys; a proposal of 64 KiB and two commits come on top, on the first page."""


def pages(show: Show, key_of: KeyOf) -> Iterator[Shown]:
    """Return the pages; the proposal, how the round began and the commit are on the first one."""
    proposal, commit, opening = show.proposal, show.commit, show.opening
    votes = () if commit is None else tuple(data for _, data in sorted(commit.votes.items()))
    first: set[bytes] = {proposal.key_id}
    batches = list(_batches(show.ballots, key_of)) or [((), set())]
    for number, (ballots, used) in enumerate(batches):
        wanted = used | (first if number == 0 else set())
        keys = [key for one in sorted(wanted) if (key := key_of(one)) is not None]
        yield Shown(
            decision=show.decision,
            proposal=proposal.data if number == 0 else None,
            ballots=ballots,
            commit=votes if number == 0 else (),
            opened=opening.body(show.epoch, key_of) if number == 0 and opening.before else None,
            following=show.following if number == 0 else (),
            keys=tuple(keys),
        )


def _batches(ballots: tuple[Received, ...], key_of: KeyOf) -> Iterator[tuple[tuple[bytes, ...], set[bytes]]]:
    batch: list[bytes] = []
    used: set[bytes] = set()
    size = 0
    for received in ballots:
        more = len(received.data) + (0 if received.key_id in used else len(key_of(received.key_id) or b""))
        if batch and size + more > PAGE_BYTES:
            yield tuple(batch), used
            batch, used, size = [], set(), 0
        batch.append(received.data)
        used.add(received.key_id)
        size += more
    if batch:
        yield tuple(batch), used


@dataclass(frozen=True, slots=True)
class OpenPage:
    """A page of which everything is verified."""

    epoch: InstalledEpoch
    proposal: Evidence[Proposal] | None
    ballots: tuple[Received, ...]
    commit: tuple[Voted, ...]
    opening: Opening | None
    following: tuple[Option, ...]
    """Not proven: a value that was committed names its digest."""
    keys: dict[bytes, bytes]
    """Public keys by id, those that the epoch binds."""


def open_page(
    page: Shown,
    epoch_of: Callable[[bytes | None], InstalledEpoch | None],
    key_of: KeyOf,
    backend: SignatureBackend,
    batches: BatchVerifier,
) -> OpenPage:
    """Verify a page.

    Args:
        page: as it came.
        epoch_of: the epoch with a digest, of those that were installed here; for None the decision's own.
        key_of: the public keys that are known here.
        backend: who computes signatures.
        batches: those that were verified before.

    Raises:
        TocsinError: ``unknown_epoch``, ``wrong_decision``, ``no_proposal``, ``unknown_key``, ``bad_signature``, or what
            is wrong with the proposal, a ballot or a vote.
    """
    proposal = None if page.proposal is None else read(page.proposal, CONSENSUS_PROPOSAL, audience="all")
    epoch = epoch_of(None if proposal is None else proposal.body.epoch)
    if epoch is None:
        raise InvalidInputError("of an epoch that is not installed here", reason="unknown_epoch")
    bound = {seat.key_id for seat in (*epoch.epoch.participants, *epoch.epoch.instances)}
    keys = {one: key for key in page.keys if (one := key_id(key)) in bound}

    def key(one: bytes) -> bytes:
        found = keys.get(one) or key_of(one)
        if found is None:
            raise UntrustedError("the key of who signed this is not known", reason="unknown_key")
        return found

    if proposal is not None:
        if proposal.leaf != page.decision:
            raise InvalidInputError("the proposal of another decision", reason="wrong_decision")
        seat = check_proposal(proposal, epoch)
        proposal.verify(backend.verifier(Algorithm(seat.algorithm), key(seat.key_id)), batches)
    ballots = []
    for data in page.ballots:
        ballot = read(data, BALLOT, audience=CONSENSUS_AUDIENCE)
        if ballot.body.decision != page.decision:
            raise InvalidInputError("a ballot of another decision", reason="wrong_decision")
        seat = epoch.seat(ballot.sender, ballot.key_id)
        ballot.verify(backend.verifier(Algorithm(seat.algorithm), key(seat.key_id)), batches)
        ballots.append(Received(ballot.body, ballot.sender, ballot.key_id, data, ballot.envelope))
    opening = None
    if page.opened is not None:
        if proposal is None or page.opened.decision != page.decision:
            raise InvalidInputError("a round without its proposal", reason="no_proposal")
        opening = verify_opened(page.opened, proposal.body, proposal.sender, epoch, key, backend, batches)
    number = 1 if opening is None else opening.question.round
    votes = open_commit(page.commit, epoch, page.decision, number) if page.commit else []
    verify_steps(votes, epoch, key, backend, batches)
    return OpenPage(epoch, proposal, tuple(ballots), as_voted(votes), opening, page.following, keys)


def as_voted(votes: list[Evidence[Vote]]) -> tuple[Voted, ...]:
    """Return verified steps as the protocol takes them."""
    return tuple(Voted(vote.body, vote.sender, vote.key_id, vote.data) for vote in votes)
