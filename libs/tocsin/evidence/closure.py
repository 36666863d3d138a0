"""A decision that chose nothing, in one file: what proves to whoever has the root that it ended so.

    closure = msgpack array ["tocsin-closure", 1, epoch: bin, links: [bin...], announcement: bin]

``epoch`` is the envelope of the last epoch record that the root signed, ``links`` the certificates of the decisions
that made the epochs after it, the oldest first, up to the one that closed this one; ``announcement`` is an instance's
announcement as it stands in stream DECISIONS: the proposal, the commit of a quorum of instances, and their keys.
There is one encoding: other bytes of the same meaning are refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import msgpack

from tocsin.bus.envelope import unpack
from tocsin.contracts.catalogue import CONSENSUS_PROPOSAL
from tocsin.contracts.decisions import DecisionAnnounced, Outcome, Proposal
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.identifiers import SpiffeId
from tocsin.crypto import SignatureBackend, TrustStore, select_backend
from tocsin.evidence.bundle import MAX_BUNDLE_BYTES
from tocsin.evidence.certificate import MAX_CERTIFICATE_BYTES, MAX_CHAIN
from tocsin.evidence.ends import verify_announcement
from tocsin.evidence.epochs import InstalledEpoch, open_epoch
from tocsin.evidence.reading import read
from tocsin.evidence.verification import follow

MAGIC = "tocsin-closure"
VERSION = 1
MAX_RECORD_BYTES = 1024 * 1024
"""More than any announcement or epoch record has."""
_BEGINS = b"\x95\xae" + MAGIC.encode()
"""An array of five, and a text of 14 bytes."""


@dataclass(frozen=True, slots=True)
class Closure:
    """A decoded closure; nothing in it is proven."""

    epoch: bytes = field(repr=False)
    links: tuple[bytes, ...] = field(repr=False)
    announcement: bytes = field(repr=False)

    def encode(self) -> bytes:
        """Return the closure's bytes."""
        return bytes(msgpack.packb((MAGIC, VERSION, self.epoch, self.links, self.announcement)))

    @classmethod
    def decode(cls, data: bytes) -> Closure:
        """Decode a closure.

        Raises:
            InvalidInputError: ``too_large``, ``bad_version`` or ``malformed``, for any other bytes.
        """
        if len(data) > MAX_BUNDLE_BYTES:
            raise InvalidInputError(f"a closure of {len(data)} bytes", reason="too_large")
        value = unpack(data, max_array=MAX_CHAIN + 1)
        if type(value) is not tuple or len(value) != 5 or value[0] != MAGIC:
            raise _malformed("no [magic, version, epoch, links, announcement]")
        _, version, epoch, links, announcement = value
        if type(version) is not int or version != VERSION:
            raise InvalidInputError(
                f"a closure of version {version!r}, this is {VERSION}", reason="bad_version"
            )
        if type(links) is not tuple or any(type(one) is not bytes for one in (epoch, announcement, *links)):
            raise _malformed("its parts are no byte strings")
        if max(len(epoch), len(announcement)) > MAX_RECORD_BYTES:
            raise _malformed("a record is too long")
        if any(len(link) > MAX_CERTIFICATE_BYTES for link in links):
            raise _malformed("a link is too long")
        closure = cls(epoch, links, announcement)
        if closure.encode() != data:
            raise _malformed("not in the one encoding")
        return closure


@dataclass(frozen=True, slots=True)
class VerifiedClosure:
    """What a closure proves."""

    ended: DecisionAnnounced
    """Proven are the outcome and the round; what was counted is the word of the announcer."""
    proposal: Proposal
    proposer: SpiffeId
    announcer: SpiffeId
    epoch: InstalledEpoch

    def json(self) -> str:
        """Return it for auditors: what is proven, and what the announcer says."""
        view = {
            "decision": self.ended.decision.hex(),
            "outcome": self.ended.outcome.value,
            "subject": self.proposal.subject,
            "options": [option.name for option in self.proposal.options],
            "evidence": list(self.proposal.evidence),
            "proposer": str(self.proposer),
            "scope": self.proposal.scope.label,
            "round": self.ended.round,
            "epoch": {
                "number": self.epoch.epoch.number,
                "digest": self.epoch.digest.hex(),
                "chain": len(self.epoch.chain),
            },
            "instances": len(self.ended.commit),
            "instances_total": len(self.epoch.instances),
            "said_by_the_announcer": {
                "announcer": str(self.announcer),
                "why": self.ended.why,
                "ballots_for": self.ended.ballots_for,
                "ballots_received": self.ended.ballots_received,
                "no_ballot": list(self.ended.missing),
            },
        }
        return json.dumps(view, indent=2)


def is_closure(data: bytes) -> bool:
    """Tell a closure from a certificate by its first bytes."""
    return data.startswith(_BEGINS)


def verify_closure(data: bytes, root_pem: bytes, *, backend: SignatureBackend | None = None) -> VerifiedClosure:
    """Verify that a decision ended without a choice, with the root's certificate and nothing else.

    Raises:
        InvalidInputError: malformed; ``unknown_epoch``: its epochs do not lead to the decision's; ``wrong_outcome``:
            something was decided, which a certificate proves.
        TocsinError: as :func:`~tocsin.evidence.epochs.open_epoch`, :func:`~tocsin.evidence.verification.follow` and
            :func:`~tocsin.evidence.ends.verify_announcement`.
    """
    backend = backend or select_backend()
    closure = Closure.decode(data)
    epoch = open_epoch(closure.epoch, TrustStore(root_pem, backend))
    for link in closure.links:
        epoch = follow(epoch, link, backend)
    told = verify_announcement(closure.announcement, {epoch.digest: epoch}.get, backend)
    if told.body.outcome is Outcome.DECIDED:
        raise InvalidInputError("something was decided: its certificate proves it", reason="wrong_outcome")
    proposal = read(told.body.proposal, CONSENSUS_PROPOSAL, audience="all")
    return VerifiedClosure(told.body, proposal.body, proposal.sender, told.sender, epoch)


def _malformed(detail: str) -> InvalidInputError:
    return InvalidInputError(f"malformed closure: {detail}", reason="malformed")
