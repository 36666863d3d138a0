"""Read an envelope as evidence: decode it, and later verify it with the key that an epoch binds.

:func:`read` believes nothing but the shape. :meth:`Evidence.verify` is the signature; whose key it has to be
is the caller's knowledge, from the root or from an epoch record.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from tocsin.bus.envelope import Envelope, decode_body, decode_envelope
from tocsin.contracts.base import Message
from tocsin.contracts.errors import DeniedError, InvalidInputError
from tocsin.contracts.identifiers import SpiffeId
from tocsin.contracts.subjects import MessageType
from tocsin.crypto import BatchVerifier, Verifier

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Evidence(Generic[M]):
    """An envelope of class evidence. Nothing in it is proven before :meth:`verify`."""

    body: M
    sender: SpiffeId
    envelope: Envelope = field(repr=False)
    data: bytes = field(repr=False)

    @property
    def leaf(self) -> bytes:
        """Leaf hash of the content: names these bytes and no others."""
        return self.envelope.leaf

    @property
    def key_id(self) -> bytes:
        """The key that it claims."""
        return self.envelope.key_id

    def verify(self, verifier: Verifier, batches: BatchVerifier) -> None:
        """Verify the signature in full, or its hashes where the batch's signature was verified before.

        Raises:
            UntrustedError: ``bad_inclusion_proof``, ``wrong_algorithm`` or ``bad_signature``.
        """
        batches.verify(verifier, self.envelope.leaf, self.envelope.proof)


def read(data: bytes, kind: MessageType[M], *, audience: str) -> Evidence[M]:
    """Decode an envelope that has to be of one type, for one audience.

    Raises:
        InvalidInputError: bytes that are no such envelope (``malformed``, ``wrong_type``, ``bad_body``).
        DeniedError: ``sender_not_allowed``: this sender may not send this type.
    """
    envelope = decode_envelope(data, max_bytes=kind.max_bytes)
    content = envelope.content
    if content.type != kind.name:
        raise InvalidInputError(
            f"a {content.type[:40]!r} stands where a {kind.name} belongs", reason="wrong_type"
        )
    if content.audience != audience:
        raise InvalidInputError(f"a {kind.name} for {content.audience[:80]!r}", reason="wrong_audience")
    if content.sealed:
        raise InvalidInputError("evidence is never sealed", reason="sealed")
    sender = SpiffeId.parse(content.sender)
    if not kind.senders.admit(sender):
        raise DeniedError(f"{sender} may not send {kind.name}", reason="sender_not_allowed")
    return Evidence(decode_body(kind.model, content.body), sender, envelope, data)
