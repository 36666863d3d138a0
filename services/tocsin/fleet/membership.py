"""Who should sit in the next epoch, by how the agents are: the change that fleet wishes for. Pure.

* A healthy agent without a seat joins; one that has renewed its key gets its seat under the new one.
* Who is quarantined, or has not been heard for ``absent_after_ns``, loses its seat, as far as the daily share allows
  (:mod:`tocsin.evidence.succession`); whose key was revoked, or of whom there is a proof, does at once.
* A suspect or silent agent keeps the seat that it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from tocsin.bus.envelope import encode_body
from tocsin.contracts.decisions import (
    MAX_CHANGED_SEATS,
    MAX_MISCONDUCT,
    MIN_PARTICIPANTS,
    EpochChange,
    Misconduct,
    Participant,
    Removal,
    RemovalCause,
)
from tocsin.contracts.fleet import AgentState
from tocsin.contracts.identifiers import SpiffeId
from tocsin.evidence.epochs import InstalledEpoch
from tocsin.evidence.succession import UNPROVEN, allowance

MAX_CHANGE_BYTES = 48 * 1024
"""Of the 64 KiB that a proposal has."""
_FIRST = (RemovalCause.QUARANTINED, RemovalCause.RENEWED, RemovalCause.ABSENT)
"""In this order what the daily share allows is spent."""


@dataclass(frozen=True, slots=True)
class Member:
    """An enrolled agent, as fleet knows it."""

    id: SpiffeId
    key_id: bytes
    algorithm: int | None
    """Of its key; None while its certificate has not come here."""
    state: AgentState
    absent_ns: int
    """How long it has not been heard, in nanoseconds."""


def wished_change(
    epoch: InstalledEpoch,
    members: Iterable[Member],
    *,
    is_revoked: Callable[[bytes], bool],
    proofs: Mapping[str, Misconduct],
    now_ns: int,
    absent_after_ns: int,
) -> EpochChange | None:
    """Return the change that fleet wishes for; None if the epoch is as it should be. O(agents).

    Args:
        epoch: the one that is installed.
        members: all enrolled agents.
        is_revoked: tells whether a key is.
        proofs: of misconduct in this epoch, by id.
        now_ns: the time, which becomes the change's.
        absent_after_ns: an agent that was not heard for so long loses its seat, in nanoseconds.
    """
    known = {str(one.id): one for one in members}
    wanted: dict[str, RemovalCause] = {}
    for sender, seat in epoch.seats.items():
        cause = _cause(known.get(sender), seat, is_revoked, proofs, absent_after_ns)
        if cause is not None:
            wanted[sender] = cause
    removed = _allowed(epoch, wanted, now_ns)
    joined = sorted(
        sender for sender, one in known.items() if _may_join(one, epoch, removed) and not is_revoked(one.key_id)
    )
    change = _change(epoch, removed, [known[sender] for sender in joined], proofs, now_ns)
    while len(encode_body(change)) > MAX_CHANGE_BYTES and (joined or len(removed) > 1):
        joined = joined[: len(joined) // 2]
        removed = dict(list(removed.items())[: max(1, len(removed) // 2)])
        removed = {s: c for s, c in removed.items() if c is not RemovalCause.RENEWED or s in joined}
        change = _change(epoch, removed, [known[sender] for sender in joined], proofs, now_ns)
    return change if change.joined or change.removed else None


def _cause(
    one: Member | None,
    seat: Participant,
    is_revoked: Callable[[bytes], bool],
    proofs: Mapping[str, Misconduct],
    absent_after_ns: int,
) -> RemovalCause | None:
    """Return why a seat should go; None if it should stay."""
    if seat.sender in proofs:
        return RemovalCause.MISCONDUCT
    if is_revoked(seat.key_id):
        return RemovalCause.REVOKED
    if one is None:
        return RemovalCause.ABSENT
    if one.state is AgentState.QUARANTINED:
        return RemovalCause.QUARANTINED
    if one.state is AgentState.HEALTHY:
        return RemovalCause.RENEWED if one.key_id != seat.key_id and one.algorithm is not None else None
    return RemovalCause.ABSENT if one.absent_ns >= absent_after_ns else None


def _allowed(epoch: InstalledEpoch, wanted: Mapping[str, RemovalCause], now_ns: int) -> dict[str, RemovalCause]:
    """Return the removals that the daily share, the least number of seats and a proposal's size allow."""
    proven = [sender for sender, cause in wanted.items() if cause not in UNPROVEN]
    guilty = [sender for sender in proven if wanted[sender] is RemovalCause.MISCONDUCT]
    proven = [sender for sender in proven if sender not in guilty[MAX_MISCONDUCT:]]
    others = sorted(
        (sender for sender, cause in wanted.items() if cause in UNPROVEN),
        key=lambda sender: (_FIRST.index(wanted[sender]), sender),
    )
    chosen = (proven + others[: allowance(epoch, now_ns)])[:MAX_CHANGED_SEATS]
    room = len(epoch.seats) - MIN_PARTICIPANTS
    return {sender: wanted[sender] for sender in sorted(chosen[: max(0, room)])}


def _may_join(one: Member, epoch: InstalledEpoch, removed: Mapping[str, RemovalCause]) -> bool:
    if one.state is not AgentState.HEALTHY or one.algorithm is None:
        return False
    held = epoch.seats.get(str(one.id))
    return held is None or (str(one.id) in removed and held.key_id != one.key_id)


def _change(
    epoch: InstalledEpoch,
    removed: Mapping[str, RemovalCause],
    joining: list[Member],
    proofs: Mapping[str, Misconduct],
    now_ns: int,
) -> EpochChange:
    return EpochChange(
        number=epoch.epoch.number + 1,
        created_ns=max(now_ns, epoch.epoch.created_ns + 1),
        joined=tuple(
            Participant(sender=str(one.id), key_id=one.key_id, algorithm=one.algorithm or 0)
            for one in joining[:MAX_CHANGED_SEATS]
        ),
        removed=tuple(Removal(sender=sender, cause=cause) for sender, cause in removed.items()),
        misconduct=tuple(
            proofs[sender] for sender, cause in removed.items() if cause is RemovalCause.MISCONDUCT
        ),
    )
