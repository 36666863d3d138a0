"""Epoch records: who decides, with which key, and by which numbers.

:func:`make_epoch` builds what the root signs; :func:`open_epoch` is how everybody else comes to believe it.
Only the root's signature and the list of seats are taken from a record: all numbers are recomputed.

The digest of an epoch that the root signed is the leaf hash of its envelope's content. A record of any number that the
root signed is good: it is a checkpoint, and cuts the chain of the epochs before it. Epochs that were decided
follow from it: see :mod:`tocsin.evidence.succession`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple, Self

from pydantic import ValidationError

from tocsin.contracts.catalogue import CONSENSUS_EPOCH
from tocsin.contracts.decisions import MAX_PARTICIPANTS, MIN_PARTICIPANTS, Epoch, EpochInstalled, Participant
from tocsin.contracts.errors import InvalidInputError, UntrustedError
from tocsin.contracts.identifiers import Kind, ServiceName, SpiffeId
from tocsin.crypto import BatchVerifier, TrustStore
from tocsin.evidence.quorum import Quorum, instance_faults, instance_quorum, weakness
from tocsin.evidence.reading import read

EPOCH_AUDIENCE = "service.consensus"

Seat = tuple[SpiffeId, bytes, int]
"""Who sits there, the id of the key that speaks for it, and that key's algorithm (1 to 3)."""


class Passage(NamedTuple):
    """What is remembered of an epoch for the daily share of removals."""

    created_ns: int
    seats: int
    unproven: int
    """Seats that it removed without proof."""


@dataclass(frozen=True)
class InstalledEpoch:
    """An epoch that is believed, with everything that follows from it."""

    epoch: Epoch
    digest: bytes
    data: bytes = field(repr=False)
    """The envelope of the record that the root signed: its own, or the one that its chain begins at."""
    chain: tuple[bytes, ...] = field(default=(), repr=False)
    """Ids of the decisions by which it came from that record; none: the root signed this one."""
    passages: tuple[Passage, ...] = field(default=(), repr=False)
    """The epochs of the last day, this one the last; not back beyond the root's."""

    @property
    def is_checkpoint(self) -> bool:
        """Whether the root has signed this very record."""
        return not self.chain

    @cached_property
    def quorum(self) -> Quorum:
        """The numbers f and q."""
        return Quorum.of(len(self.epoch.participants))

    @cached_property
    def instance_quorum(self) -> int:
        """Q."""
        return instance_quorum(len(self.epoch.instances))

    @cached_property
    def seats(self) -> Mapping[str, Participant]:
        """The participants, by id."""
        return MappingProxyType({seat.sender: seat for seat in self.epoch.participants})

    @cached_property
    def instances(self) -> Mapping[str, Participant]:
        """The consensus instances, by id."""
        return MappingProxyType({seat.sender: seat for seat in self.epoch.instances})

    @cached_property
    def why_not(self) -> str:
        """Why the participant set is not Byzantine-tolerant; empty where it is."""
        return weakness(self.quorum, (seat.key_id for seat in self.epoch.participants))

    @property
    def byzantine_tolerant(self) -> bool:
        """Whether f hostile participants are tolerated and no key holds more than f seats."""
        return not self.why_not

    @property
    def instance_faults(self) -> int:
        """g: so many instances may be hostile."""
        return instance_faults(len(self.epoch.instances))

    def installed(self) -> EpochInstalled:
        """Return what is told of it to who installs it."""
        return EpochInstalled(
            epoch=self.digest,
            participants=self.quorum.participants,
            quorum=self.quorum.needed,
            byzantine_tolerant=self.byzantine_tolerant,
            why_not=self.why_not,
            instances=len(self.instances),
            instance_faults=self.instance_faults,
        )

    def seat(self, sender: SpiffeId, key_id: bytes) -> Participant:
        """Return a participant's seat if this key speaks for it in this epoch.

        Raises:
            UntrustedError: ``not_a_participant`` or ``wrong_key``.
        """
        return bound_seat(self.seats, sender, key_id, "not_a_participant")

    def instance(self, sender: SpiffeId, key_id: bytes) -> Participant:
        """Return an instance's seat if this key speaks for it in this epoch.

        Raises:
            UntrustedError: ``not_an_instance`` or ``wrong_key``.
        """
        return bound_seat(self.instances, sender, key_id, "not_an_instance")

    @classmethod
    def from_record(cls, epoch: Epoch, digest: bytes, data: bytes) -> Self:
        """Check a record's rules and numbers; its signature has been verified.

        Raises:
            InvalidInputError: with the reason of the rule that it breaks.
        """
        passage = Passage(epoch.created_ns, len(epoch.participants), 0)
        installed = cls(epoch, digest, data, passages=(passage,))
        rules = (epoch.tolerated_faults, epoch.quorum, epoch.instance_quorum)
        if rules != (installed.quorum.tolerated_faults, installed.quorum.needed, installed.instance_quorum):
            raise InvalidInputError("the record's numbers do not follow from its seats", reason="wrong_numbers")
        _check_seats(epoch)
        return installed


def make_epoch(
    *,
    number: int,
    trust_domain: str,
    participants: Iterable[Seat],
    instances: Iterable[Seat],
    created_ns: int,
    previous: bytes | None = None,
) -> Epoch:
    """Build an epoch record for the root to sign.

    Args:
        number: 0 for the first; each later one is higher.
        trust_domain: the root's.
        participants: the agents that decide, in any order.
        instances: the consensus instances, each with a key of its own.
        created_ns: nanoseconds since the epoch, UTC.
        previous: digest of the epoch before.

    Raises:
        InvalidInputError: ``too_few_participants``, ``too_many_participants``, or another rule's reason.
    """
    agents, services = _sorted_seats(participants), _sorted_seats(instances)
    if len(agents) < MIN_PARTICIPANTS:
        raise InvalidInputError(
            f"{len(agents)} participants, at least {MIN_PARTICIPANTS} are needed to decide anything",
            reason="too_few_participants",
            advice=f"start at least {MIN_PARTICIPANTS} agents",
        )
    if len(agents) > MAX_PARTICIPANTS:
        raise InvalidInputError(
            f"{len(agents)} participants, at most {MAX_PARTICIPANTS}", reason="too_many_participants"
        )
    quorum = Quorum.of(len(agents))
    try:
        epoch = Epoch(
            number=number,
            previous=previous,
            trust_domain=trust_domain,
            participants=agents,
            instances=services,
            tolerated_faults=quorum.tolerated_faults,
            quorum=quorum.needed,
            instance_quorum=instance_quorum(len(services)),
            created_ns=created_ns,
        )
    except ValidationError as error:
        wrong = [".".join(map(str, e["loc"])) for e in error.errors(include_input=False)[:3]]
        raise InvalidInputError(f"no epoch: wrong {', '.join(wrong)}", reason="bad_epoch") from error
    _check_seats(epoch)
    return epoch


def open_epoch(data: bytes, trust: TrustStore, batches: BatchVerifier | None = None) -> InstalledEpoch:
    """Verify an epoch record's envelope against the root, and recompute its numbers.

    Raises:
        UntrustedError: ``wrong_root``, ``wrong_algorithm``, ``bad_signature`` or ``bad_inclusion_proof``.
        InvalidInputError: no epoch record, or one that breaks a rule.
    """
    record = read(data, CONSENSUS_EPOCH.request_type, audience=EPOCH_AUDIENCE)
    if record.key_id != trust.root.key_id or not trust.root.names(str(record.sender)):
        raise UntrustedError("the epoch record is not the trusted root's", reason="wrong_root")
    record.verify(trust.root.verifier, BatchVerifier(1) if batches is None else batches)
    if record.body.trust_domain != trust.domain:
        raise InvalidInputError(f"an epoch of {record.body.trust_domain!r}", reason="wrong_domain")
    return InstalledEpoch.from_record(record.body, record.leaf, data)


def bound_seat(seats: Mapping[str, Participant], sender: SpiffeId, key_id: bytes, absent: str) -> Participant:
    """Return the seat of ``sender`` if this key speaks for it.

    Raises:
        UntrustedError: ``absent``, or ``wrong_key``.
    """
    seat = seats.get(str(sender))
    if seat is None:
        raise UntrustedError(f"{sender} has no seat in this epoch", reason=absent)
    if seat.key_id != key_id:
        raise UntrustedError(f"the epoch binds another key to {sender}", reason="wrong_key")
    return seat


def _sorted_seats(seats: Iterable[Seat]) -> tuple[Participant, ...]:
    ordered = sorted((str(who), key_id, algorithm) for who, key_id, algorithm in seats)
    try:
        return tuple(Participant(sender=s, key_id=k, algorithm=int(a)) for s, k, a in ordered)
    except ValidationError as error:
        raise InvalidInputError("a seat has no usable id, key or algorithm", reason="bad_epoch") from error


def _check_seats(epoch: Epoch) -> None:
    """Hold the rules on seats: sorted, distinct, of this domain, of the right kind, instances' own keys."""
    for seats in (epoch.participants, epoch.instances):
        names = [seat.sender for seat in seats]
        if len(set(names)) != len(names):
            raise InvalidInputError("one sits twice in the epoch", reason="duplicate_participant")
        if names != sorted(names):
            raise InvalidInputError("the epoch's seats are not in order", reason="bad_epoch")
    for seat in epoch.participants:
        if _identity(seat, epoch).kind is not Kind.AGENT:
            raise InvalidInputError(f"{seat.sender} is no agent", reason="bad_epoch")
    for seat in epoch.instances:
        if _identity(seat, epoch).service_name is not ServiceName.CONSENSUS:
            raise InvalidInputError(f"{seat.sender} is no consensus instance", reason="bad_epoch")
    own = {seat.key_id for seat in epoch.instances}
    if len(own) != len(epoch.instances) or own & {seat.key_id for seat in epoch.participants}:
        raise InvalidInputError("a consensus instance shares its key", reason="shared_key")


def _identity(seat: Participant, epoch: Epoch) -> SpiffeId:
    identity = SpiffeId.parse(seat.sender)
    if identity.domain != epoch.trust_domain:
        raise InvalidInputError(f"{seat.sender} is of another domain", reason="wrong_domain")
    return identity
