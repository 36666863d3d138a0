"""Seal a message's body to at most 64 recipients, so that nobody else can read it.

    sealed body = version: 1 | count: 1 | commitment: 32 | count x (key id: 32 | wrap: 1168) | ciphertext

The body is encrypted with AES-256-GCM under a fresh key, with the *head* (the content's bytes before the body) as
associated data. The fresh key is wrapped to each recipient with HPKE (RFC 9180), KEM MLKEM768-X25519; HPKE's info
is a hash of the head and of the recipients, since that library's suite takes no associated data. So a wrap is
good in this message alone, for these recipients alone: it can neither be moved to another message, nor can a recipient
be added to or struck off a message that is signed again. GCM does not commit to its key, so a sender could make one
ciphertext that means something else to each recipient; the commitment, a hash of the key, excludes that.

What this does not do: hide the body's length and who the recipients are, nor protect what was sealed from who gets
a recipient's key later. It says nothing about who sealed; the envelope's signature does.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256, shake_256
from itertools import pairwise
from typing import NamedTuple, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from tocsin.contracts.errors import DeniedError, InvalidInputError, UntrustedError

SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
VERSION = 1
MAX_RECIPIENTS = 64
"""75 kB of wraps. Beyond that a role would have a key of its own, itself delivered sealed."""
SEED_BYTES = 32
MLKEM_PUBLIC_BYTES = 1184
"""FIPS 203 section 8, table 3."""
PUBLIC_BYTES = MLKEM_PUBLIC_BYTES + 32
KEY_BYTES = 32
TAG_BYTES = 16
WRAP_BYTES = 1088 + 32 + KEY_BYTES + TAG_BYTES
"""An ML-KEM-768 ciphertext (FIPS 203), an X25519 share, the wrapped key and its tag."""

_DIGEST_BYTES = 32
_FIXED_BYTES = 2 + _DIGEST_BYTES
_NONCE = bytes(12)
"""Each key encrypts one body, so the nonce may be constant."""
_INFO = b"tocsin/sealing/1 info"
_COMMITMENT = b"tocsin/sealing/1 commitment"


def _bad(detail: str) -> InvalidInputError:
    return InvalidInputError(f"no sealed body: {detail}", reason="bad_seal")


@dataclass(frozen=True, slots=True)
class SealingPublicKey:
    """To whom a body can be sealed."""

    raw: bytes = field(repr=False)
    """ML-KEM-768 public key, then X25519 public key: 1,216 bytes."""
    id: bytes
    """SHA-256 of ``raw``."""
    key: MLKEM768X25519PublicKey = field(repr=False, compare=False)

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Read a public key, from whomever.

        Raises:
            InvalidInputError: ``bad_sealing_key``: it is none, or one to which nothing can be sealed.
        """
        if len(raw) != PUBLIC_BYTES:
            raise InvalidInputError(f"a key of {len(raw)} bytes", reason="bad_sealing_key")
        try:
            mlkem = MLKEM768PublicKey.from_public_bytes(raw[:MLKEM_PUBLIC_BYTES])
            x25519 = X25519PublicKey.from_public_bytes(raw[MLKEM_PUBLIC_BYTES:])
            # A point of small order lets no exchange succeed: found here, or everyone's next message would fail.
            X25519PrivateKey.generate().exchange(x25519)
        except ValueError as error:
            raise InvalidInputError("no key to seal to", reason="bad_sealing_key") from error
        return cls(raw, sha256(raw).digest(), MLKEM768X25519PublicKey(mlkem, x25519))


@dataclass(frozen=True, slots=True)
class SealingKey:
    """What opens bodies. The seed appears in no repr."""

    seed: bytes = field(repr=False)
    """32 bytes, expanded as X-Wing does (draft-connolly-cfrg-xwing-kem, section 5.2)."""
    public: SealingPublicKey
    key: MLKEM768X25519PrivateKey = field(repr=False, compare=False)

    @classmethod
    def generate(cls) -> Self:
        """Make a fresh key."""
        return cls.from_seed(os.urandom(SEED_BYTES))

    @classmethod
    def from_seed(cls, seed: bytes) -> Self:
        """Return the key that a seed stands for.

        Raises:
            InvalidInputError: ``bad_sealing_key``: the seed is not 32 bytes.
        """
        if len(seed) != SEED_BYTES:
            raise InvalidInputError(f"a seed of {len(seed)} bytes", reason="bad_sealing_key")
        expanded = shake_256(seed).digest(96)
        mlkem = MLKEM768PrivateKey.from_seed_bytes(expanded[:64])
        x25519 = X25519PrivateKey.from_private_bytes(expanded[64:])
        raw = mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()
        return cls(seed, SealingPublicKey.from_bytes(raw), MLKEM768X25519PrivateKey(mlkem, x25519))


class Sealed(NamedTuple):
    """A sealed body's parts; nothing in it is proven."""

    commitment: bytes
    recipients: tuple[bytes, ...]
    """Ids of the keys that it is sealed to, ascending."""
    wraps: tuple[bytes, ...]
    """The fresh key, wrapped to each."""
    ciphertext: bytes


def seal_body(body: bytes, head: bytes, recipients: Iterable[SealingPublicKey]) -> bytes:
    """Seal a body. O(recipients), some 150 microseconds each: for a worker thread.

    Args:
        body: what to seal.
        head: the content's bytes before the body; the same are needed to open it.
        recipients: who can open it; the same key twice counts once.

    Raises:
        InvalidInputError: ``no_recipients`` or ``too_many_recipients``.
    """
    keys = {key.id: key for key in recipients}
    if not keys:
        raise InvalidInputError("a body is sealed to somebody", reason="no_recipients")
    if len(keys) > MAX_RECIPIENTS:
        raise InvalidInputError(
            f"{len(keys)} recipients, at most {MAX_RECIPIENTS}", reason="too_many_recipients"
        )
    ids = sorted(keys)
    secret = os.urandom(KEY_BYTES)
    info = _info(head, ids)
    parts = [bytes((VERSION, len(ids))), _commitment(secret)]
    for one in ids:
        parts += [one, SUITE.encrypt(secret, keys[one].key, info=info)]
    return b"".join([*parts, AESGCM(secret).encrypt(_NONCE, body, head)])


def parse_sealed(data: bytes) -> Sealed:
    """Take a sealed body apart.

    Raises:
        InvalidInputError: ``bad_seal``, whatever was wrong.
    """
    if len(data) < _FIXED_BYTES or data[0] != VERSION:
        raise _bad("it does not begin with a version that is known")
    count, step = data[1], _DIGEST_BYTES + WRAP_BYTES
    end = _FIXED_BYTES + count * step
    if not 1 <= count <= MAX_RECIPIENTS or len(data) < end + TAG_BYTES:
        raise _bad(f"{count} recipients in {len(data)} bytes")
    starts = range(_FIXED_BYTES, end, step)
    recipients = tuple(data[at : at + _DIGEST_BYTES] for at in starts)
    if any(one >= following for one, following in pairwise(recipients)):
        raise _bad("the recipients are not in order")
    wraps = tuple(data[at + _DIGEST_BYTES : at + step] for at in starts)
    return Sealed(data[2:_FIXED_BYTES], recipients, wraps, data[end:])


def open_body(sealed: Sealed, head: bytes, key: SealingKey) -> bytes:
    """Open a body with one recipient's key.

    Raises:
        DeniedError: ``not_a_recipient``: it is sealed to others.
        UntrustedError: ``bad_wrap``: the key was not wrapped to us for this message and these recipients;
            ``bad_commitment``: what was wrapped is another key than the body commits to; ``bad_ciphertext``: the
            body is not what was encrypted.
    """
    if key.public.id not in sealed.recipients:
        raise DeniedError("sealed to others", reason="not_a_recipient")
    wrap = sealed.wraps[sealed.recipients.index(key.public.id)]
    try:
        secret = SUITE.decrypt(wrap, key.key, info=_info(head, sealed.recipients))
    except (InvalidTag, ValueError) as error:
        raise UntrustedError("the key was not wrapped to us for this message", reason="bad_wrap") from error
    if _commitment(secret) != sealed.commitment:
        raise UntrustedError("another key than the body commits to", reason="bad_commitment")
    try:
        return AESGCM(secret).decrypt(_NONCE, sealed.ciphertext, head)
    except InvalidTag as error:
        raise UntrustedError("the sealed body was changed", reason="bad_ciphertext") from error


def _info(head: bytes, recipients: Iterable[bytes]) -> bytes:
    return sha256(_INFO + sha256(head).digest() + b"".join(recipients)).digest()


def _commitment(secret: bytes) -> bytes:
    return sha256(_COMMITMENT + secret).digest()
