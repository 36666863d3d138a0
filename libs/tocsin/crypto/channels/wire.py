"""The bytes of offers, answers and frames: fixed layouts, read by arithmetic before anything in them is believed.

    offer   version(1) suite(1) flags(1) nonce(32) parties(32) messages(4) age_s(4) qkd_key_id(16)
            mlkem_public(1184) x25519_public(32)
    answer  version(1) suite(1) flags(1) offer_digest(32) mlkem_ciphertext(1088) x25519_public(32) confirmation(32)
    frame   version(1) channel(16) counter(8) ciphertext(0..) tag(16)

Numbers are big-endian. An offer's flags: 1 a QKD key is offered, 2 it must be used (only with 1); an answer's: 1 it
is used. Any other flag, version or suite is refused; ``qkd_key_id`` is zero exactly if no key is offered.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple, Self

from tocsin.contracts.errors import InvalidInputError

VERSION = 1
SUITE = 1
"""ML-KEM-768 and X25519, HKDF-SHA-256, AES-256-GCM."""
NONCE_BYTES = 32
DIGEST_BYTES = 32
MLKEM_PUBLIC_BYTES = 1184
"""FIPS 203 section 8, table 3."""
MLKEM_CIPHERTEXT_BYTES = 1088
X25519_BYTES = 32
QKD_KEY_ID_BYTES = 16
"""ETSI GS QKD 014 V1.1.1 section 6.3: a key's id is a UUID."""
CHANNEL_BYTES = 16
TAG_BYTES = 16

MAX_MESSAGES = 1 << 20
"""Frames in one direction under one key. Far below what AES-GCM with counted nonces bears (2^36 blocks a message,
NIST SP 800-38D section 5.2.1.1): it bounds what one key's loss exposes."""
MAX_AGE_S = 3600
"""Age of a key, in seconds; the same reason."""

_OFFER = struct.Struct(
    f">BBB{NONCE_BYTES}s{DIGEST_BYTES}sII{QKD_KEY_ID_BYTES}s{MLKEM_PUBLIC_BYTES}s{X25519_BYTES}s"
)
_ANSWER = struct.Struct(f">BBB{DIGEST_BYTES}s{MLKEM_CIPHERTEXT_BYTES}s{X25519_BYTES}s{DIGEST_BYTES}s")
HEADER = struct.Struct(f">B{CHANNEL_BYTES}sQ")
FRAME_BYTES = HEADER.size + TAG_BYTES
"""What a frame adds to its plaintext."""

_QKD_OFFERED, _QKD_REQUIRED = 1, 2
_QKD_USED = 1
_NO_QKD = bytes(QKD_KEY_ID_BYTES)
_PARTIES = b"tocsin/channel/1 parties"


class Parties(NamedTuple):
    """Whose channel it is: two SPIFFE ids."""

    initiator: str
    responder: str

    def digest(self) -> bytes:
        """Return 32 bytes that stand for both ids, in their order."""
        return sha256(_PARTIES + _counted(self.initiator) + _counted(self.responder)).digest()


class Keys(NamedTuple):
    """By which signing keys the envelopes of a handshake were verified: their ids, 32 bytes each."""

    initiator: bytes
    responder: bytes


class Limits(NamedTuple):
    """When the keys of a channel are used up."""

    messages: int = MAX_MESSAGES
    """Frames in one direction."""
    age_s: int = MAX_AGE_S
    """Seconds since they were made."""

    def check(self) -> Self:
        """Return the limits, or refuse them.

        Raises:
            InvalidInputError: ``bad_channel_limits``: none, or beyond :data:`MAX_MESSAGES`, :data:`MAX_AGE_S`.
        """
        if not (1 <= self.messages <= MAX_MESSAGES and 1 <= self.age_s <= MAX_AGE_S):
            raise InvalidInputError(
                f"a channel of {self.messages} messages and {self.age_s} s", reason="bad_channel_limits"
            )
        return self


LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Offer:
    """What the initiator signs."""

    nonce: bytes
    parties: bytes
    """:meth:`Parties.digest`."""
    limits: Limits
    mlkem_public: bytes
    x25519_public: bytes
    qkd_key_id: bytes | None = None
    """The key that both sides' key servers have, if one is offered."""
    qkd_required: bool = False

    def encode(self) -> bytes:
        """Return the bytes that travel."""
        flags = (_QKD_OFFERED if self.qkd_key_id else 0) | (_QKD_REQUIRED if self.qkd_required else 0)
        return _OFFER.pack(
            VERSION,
            SUITE,
            flags,
            self.nonce,
            self.parties,
            self.limits.messages,
            self.limits.age_s,
            self.qkd_key_id or _NO_QKD,
            self.mlkem_public,
            self.x25519_public,
        )

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read an offer, from whomever.

        Raises:
            InvalidInputError: ``bad_channel_offer``; ``bad_channel_limits``.
        """
        if len(data) != _OFFER.size:
            raise InvalidInputError(f"an offer of {len(data)} bytes", reason="bad_channel_offer")
        version, suite, flags, nonce, parties, messages, age_s, qkd, mlkem, x25519 = _OFFER.unpack(data)
        offered = bool(flags & _QKD_OFFERED)
        known = (version, suite) == (VERSION, SUITE) and flags in {
            0,
            _QKD_OFFERED,
            _QKD_OFFERED | _QKD_REQUIRED,
        }
        if not known or offered is (qkd == _NO_QKD):
            raise InvalidInputError("an offer of a kind that is not known", reason="bad_channel_offer")
        limits = Limits(messages, age_s).check()
        required = bool(flags & _QKD_REQUIRED)
        return cls(nonce, parties, limits, mlkem, x25519, qkd if offered else None, required)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the responder signs."""

    offer_digest: bytes
    """SHA-256 of the offer that it answers."""
    qkd: bool
    """Whether the offered QKD key was mixed in."""
    mlkem_ciphertext: bytes
    x25519_public: bytes
    confirmation: bytes
    """What only who has the keys can make."""

    def encode(self) -> bytes:
        """Return the bytes that travel."""
        return self.core() + self.confirmation

    def core(self) -> bytes:
        """Return the bytes before the confirmation: what the transcript takes in."""
        packed = _ANSWER.pack(
            VERSION,
            SUITE,
            _QKD_USED if self.qkd else 0,
            self.offer_digest,
            self.mlkem_ciphertext,
            self.x25519_public,
            b"",
        )
        return packed[:-DIGEST_BYTES]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read an answer, from whomever.

        Raises:
            InvalidInputError: ``bad_channel_answer``.
        """
        if len(data) != _ANSWER.size:
            raise InvalidInputError(f"an answer of {len(data)} bytes", reason="bad_channel_answer")
        version, suite, flags, offer, ciphertext, x25519, confirmation = _ANSWER.unpack(data)
        if (version, suite) != (VERSION, SUITE) or flags not in {0, _QKD_USED}:
            raise InvalidInputError("an answer of a kind that is not known", reason="bad_channel_answer")
        return cls(offer, flags == _QKD_USED, ciphertext, x25519, confirmation)


def channel_of(frame: bytes) -> bytes:
    """Return the channel that a frame names; nothing in it is proven.

    Raises:
        InvalidInputError: ``bad_frame``.
    """
    if len(frame) < FRAME_BYTES or frame[0] != VERSION:
        raise InvalidInputError(f"no frame: {len(frame)} bytes", reason="bad_frame")
    return frame[1 : 1 + CHANNEL_BYTES]


def _counted(text: str) -> bytes:
    raw = text.encode()
    return len(raw).to_bytes(2, "big") + raw
