"""How an epoch follows from the one before it, without the root's signature. Pure.

An epoch record that was decided is never sent: a proposal carries the *change*, and whoever believes epoch e computes
epoch e + 1 from the two. The proposal's first option names the digest of the outcome, so what is balloted for,
committed and installed is one and the same record:

    digest(e + 1) = SHA-256("tocsin/epoch/1" || 0x00 || msgpack of the record)

The record names ``previous``, the digest of epoch e, and so all epochs back to the one that the root signed. The
consensus instances stay the same.

**The daily share.** Absence that is not proven misbehaviour may remove at most 5 % of the seats a day, or whoever
delays heartbeats shrinks the denominator. In the 24 hours up to ``created_ns``, removals of the causes in
:data:`UNPROVEN` number at most ``least * 5 // 100``, where ``least`` is the fewest seats of any epoch that was in force
then. With fewer than 20 seats that is none: there only the root, a revocation or a proof removes. A checkpoint by
the root begins the count anew.

What anyone can check with the root's record and the certificates alone: all of this, and the proofs of misconduct.
What only agents can, when they ballot: that ``created_ns`` is now, that a new seat's key is certified, that a revoked
key is, and that the agent which ballots is there itself (:mod:`tocsin.agent.succession`). That somebody else was
absent nobody can check.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import NamedTuple

import msgpack

from tocsin.bus.envelope import decode_body, encode_body, unpack
from tocsin.contracts.decisions import Epoch, EpochChange, Participant, Proposal, RemovalCause
from tocsin.contracts.errors import InvalidInputError, UntrustedError
from tocsin.contracts.identifiers import SpiffeId
from tocsin.crypto import SignatureBackend, TrustStore
from tocsin.evidence.certificate import MAX_CHAIN, check_chain
from tocsin.evidence.epochs import InstalledEpoch, Passage, make_epoch, open_epoch
from tocsin.evidence.misbehaviour import verify_misbehaviour

EPOCH_DOMAIN = b"tocsin/epoch/1\x00"
UNPROVEN = frozenset({RemovalCause.ABSENT, RemovalCause.QUARANTINED, RemovalCause.RENEWED})
DAY_NS = 86_400 * 1_000_000_000
SHARE_PERCENT = 5
INSTALL = 0
"""The option that makes the epoch."""
GRACE_NS = 60 * 1_000_000_000
"""How long after the next record was made a proposal of the epoch before still opens a decision: who proposed had not
heard of it yet. Deciding on a record takes a part of that."""


class Succession(NamedTuple):
    """A proposal's next epoch, and by what it comes."""

    epoch: InstalledEpoch
    change: EpochChange


def still_decides(digest: bytes, current: InstalledEpoch, now_ns: int) -> bool:
    """Tell whether decisions may be opened in an epoch: the current one, or the one before while that is news.

    Args:
        digest: the epoch's.
        current: the one that is gone by here.
        now_ns: the time.
    """
    if digest == current.digest:
        return True
    return digest == current.epoch.previous and now_ns < current.epoch.created_ns + GRACE_NS


def epoch_digest(record: Epoch) -> bytes:
    """Return the digest of a record that was decided."""
    return sha256(EPOCH_DOMAIN + encode_body(record)).digest()


def allowance(epoch: InstalledEpoch, at_ns: int) -> int:
    """Return how many seats may be removed without proof by a change that is made at ``at_ns``."""
    recent = _recent(epoch.passages, at_ns)
    least = min((passage.seats for passage in recent), default=0)
    spent = sum(passage.unproven for passage in recent if passage.created_ns > at_ns - DAY_NS)
    return max(0, least * SHARE_PERCENT // 100 - spent)


def next_epoch(
    epoch: InstalledEpoch, change: EpochChange, decision: bytes, backend: SignatureBackend
) -> InstalledEpoch:
    """Return the epoch that a change makes of one.

    Args:
        epoch: what is believed.
        change: what is proposed.
        decision: id of the decision on it, which becomes the last link of the chain.
        backend: who computes signatures, of proofs of misconduct.

    Raises:
        InvalidInputError: ``chain_too_long``, ``wrong_number``, ``wrong_order``, ``bad_change``, ``unknown_seat``,
            ``duplicate_participant``, ``too_many_removals``, or a rule of :func:`make_epoch`.
        UntrustedError: a proof of misconduct does not hold.
    """
    record = epoch.epoch
    if len(epoch.chain) >= MAX_CHAIN:
        check_chain((*epoch.chain, decision))
    if change.number != record.number + 1:
        raise InvalidInputError(f"epoch {change.number} after {record.number}", reason="wrong_number")
    if change.created_ns <= record.created_ns:
        raise InvalidInputError("the next epoch is not later than this one", reason="wrong_order")
    _check_lists(epoch, change)
    _check_misconduct(epoch, change, backend)
    unproven = sum(removal.cause in UNPROVEN for removal in change.removed)
    if unproven > (allowed := allowance(epoch, change.created_ns)):
        raise InvalidInputError(
            f"{unproven} seats are removed without proof, {allowed} may be today",
            reason="too_many_removals",
            advice="have the root sign the epoch: tocsin epoch checkpoint",
        )
    gone = {removal.sender for removal in change.removed}
    seats = [seat for seat in record.participants if seat.sender not in gone]
    made = make_epoch(
        number=change.number,
        trust_domain=record.trust_domain,
        participants=[_seat(one) for one in (*seats, *change.joined)],
        instances=[_seat(one) for one in record.instances],
        created_ns=change.created_ns,
        previous=epoch.digest,
    )
    return InstalledEpoch(
        made,
        epoch_digest(made),
        epoch.data,
        chain=(*epoch.chain, decision),
        passages=(
            *_recent(epoch.passages, change.created_ns),
            Passage(change.created_ns, len(made.participants), unproven),
        ),
    )


def asks_for_epoch(proposal: Proposal) -> bool:
    """Tell whether a proposal is about the next epoch, rightly or not."""
    return proposal.change is not None or any(option.epoch is not None for option in proposal.options)


def succession_of(
    proposal: Proposal, decision: bytes, epoch: InstalledEpoch, backend: SignatureBackend
) -> Succession | None:
    """Return the next epoch that a proposal asks for; None if it asks for something else.

    Raises:
        InvalidInputError: ``bad_epoch_proposal``: its options do not say what its change makes, or it does not ask
            all in one round; or as :func:`next_epoch`.
        UntrustedError: as :func:`next_epoch`.
    """
    change = proposal.change
    names = [option.epoch for option in proposal.options]
    if not asks_for_epoch(proposal):
        return None
    if (
        change is None
        or len(names) != 2
        or names[INSTALL] is None
        or names[1] is not None
        or any(option.command is not None for option in proposal.options)
        or proposal.scope.label != "all"
        or proposal.rounds != 1
    ):
        raise InvalidInputError(
            "a proposal of an epoch asks all, in one round, for one change: install it, or keep this epoch",
            reason="bad_epoch_proposal",
        )
    if proposal.epoch != epoch.digest:
        raise InvalidInputError("the proposal is of another epoch", reason="wrong_epoch")
    after = next_epoch(epoch, change, decision, backend)
    if names[INSTALL] != after.digest:
        raise InvalidInputError("the option names another record than its change makes", reason="wrong_record")
    return Succession(after, change)


def pack_epoch(epoch: InstalledEpoch) -> bytes:
    """Return a decided epoch as bytes for this process's own log: they prove nothing to anybody else."""
    passages = [list(passage) for passage in epoch.passages]
    return bytes(msgpack.packb([epoch.data, list(epoch.chain), encode_body(epoch.epoch), passages]))


def unpack_epoch(data: bytes, trust: TrustStore) -> InstalledEpoch:
    """Return a decided epoch from this process's own log.

    Raises:
        TocsinError: it is none, or the root did not sign the record that it goes back to.
    """
    try:
        root, chain, record, passages = unpack(data, max_array=MAX_CHAIN)
        line = tuple(Passage(*map(int, passage)) for passage in passages)
        chain = tuple(chain)
    except (TypeError, ValueError) as error:
        raise InvalidInputError("no epoch that was kept", reason="malformed") from error
    if any(type(one) is not bytes for one in (root, record, *chain)):
        raise InvalidInputError("no epoch that was kept: its parts are no bytes", reason="malformed")
    open_epoch(root, trust)
    made = decode_body(Epoch, record)
    return InstalledEpoch(made, epoch_digest(made), root, chain=chain, passages=line)


def _recent(passages: Sequence[Passage], at_ns: int) -> tuple[Passage, ...]:
    """Return the epochs that were in force at some time of the day up to ``at_ns``."""
    begins_ns = at_ns - DAY_NS
    inside = [i for i, passage in enumerate(passages) if passage.created_ns > begins_ns]
    first = inside[0] if inside else len(passages)
    return tuple(passages[max(0, first - 1) :])


def _check_lists(epoch: InstalledEpoch, change: EpochChange) -> None:
    joined, removed = ([one.sender for one in seats] for seats in (change.joined, change.removed))
    for names in (joined, removed):
        if names != sorted(set(names)):
            raise InvalidInputError("a change's seats are not sorted, each once", reason="bad_change")
    if not joined and not removed:
        raise InvalidInputError("the change changes nothing", reason="bad_change")
    if unknown := set(removed) - epoch.seats.keys():
        raise InvalidInputError(f"{min(unknown)} has no seat to lose", reason="unknown_seat")
    if twice := [name for name in joined if name in epoch.seats and name not in removed]:
        raise InvalidInputError(f"{twice[0]} has a seat already", reason="duplicate_participant")
    causes = {one.sender: one.cause for one in change.removed}
    for seat in change.joined:
        held = epoch.seats.get(seat.sender)
        if held is not None and held.key_id == seat.key_id:
            raise InvalidInputError(f"{seat.sender} leaves and joins with one key", reason="bad_change")
    for name, cause in causes.items():
        if cause is RemovalCause.RENEWED and name not in joined:
            raise InvalidInputError(f"{name} is renewed and does not join", reason="bad_change")


def _check_misconduct(epoch: InstalledEpoch, change: EpochChange, backend: SignatureBackend) -> None:
    guilty = [one.sender for one in change.removed if one.cause is RemovalCause.MISCONDUCT]
    if guilty != [one.proof.accused for one in change.misconduct]:
        raise InvalidInputError("the proofs are not those of who is removed for it", reason="bad_change")
    for one in change.misconduct:
        if one.proof.accused not in epoch.seats:
            raise UntrustedError(f"{one.proof.accused} has no seat", reason="not_a_participant")
        verify_misbehaviour(one.proof, epoch, one.public_key, backend)


def _seat(one: Participant) -> tuple[SpiffeId, bytes, int]:
    return SpiffeId.parse(one.sender), one.key_id, one.algorithm
