"""Say what a signature is here: ML-DSA (FIPS 204) with a context string, whoever computes it.

Two backends implement these protocols and make and accept the same bytes: see
:mod:`tocsin.crypto.backends`. Private keys travel and rest as 32-byte seeds (FIPS 204 section 6.1); what
a backend expands them to never leaves it.

Nothing here can turn verification off, and each backend counts what it really did, so that a benchmark
can say how many full verifications its figures contain.

Example:
    >>> from tocsin.crypto import Algorithm, generate_seed, select_backend
    >>> backend = select_backend("openssl")
    >>> signer = backend.signer(Algorithm.ML_DSA_65, generate_seed())
    >>> signature = signer.sign(b"message", b"context")
    >>> backend.verifier(Algorithm.ML_DSA_65, signer.public_key).verify(signature, b"message", b"context")
    True
"""

from __future__ import annotations

import secrets
from enum import IntEnum
from hashlib import sha256
from threading import Lock
from typing import Protocol, Self

from tocsin.contracts.errors import InvalidInputError

SEED_BYTES = 32
"""Length of a private seed, the ξ of FIPS 204 algorithm 6."""

KEY_ID_BYTES = 32
"""Length of a key id: SHA-256 of the raw public key."""

MAX_CONTEXT_BYTES = 255
"""FIPS 204 algorithms 2 and 3: a longer context string is refused."""


class Algorithm(IntEnum):
    """The parameter sets of FIPS 204; the values are those of the envelope's ``alg`` field."""

    ML_DSA_44 = 1
    ML_DSA_65 = 2
    ML_DSA_87 = 3

    @property
    def label(self) -> str:
        """The name that FIPS 204 gives it, e.g. ``ML-DSA-65``."""
        return self.name.replace("_", "-")

    @property
    def public_key_bytes(self) -> int:
        """Length of a raw public key in bytes."""
        return _SIZES[self][0]

    @property
    def signature_bytes(self) -> int:
        """Length of every signature in bytes."""
        return _SIZES[self][1]

    @classmethod
    def named(cls, text: str) -> Self:
        """Return the algorithm called ``text``, such as ``ML-DSA-65`` or ``ml-dsa-65``.

        Raises:
            InvalidInputError: there is no such algorithm.
        """
        for algorithm in cls:
            if text.upper() == algorithm.label:
                return algorithm
        raise InvalidInputError(
            f"unknown signature algorithm {text[:40]!r}",
            reason="unknown_algorithm",
            advice=f"choose one of {', '.join(algorithm.label for algorithm in cls)}",
        )


_SIZES = {
    Algorithm.ML_DSA_44: (1312, 2420),
    Algorithm.ML_DSA_65: (1952, 3309),
    Algorithm.ML_DSA_87: (2592, 4627),
}
"""Bytes of public key and signature: FIPS 204, table 2."""


class Counters:
    """How many signatures and full verifications a backend has computed in this process."""

    __slots__ = ("_lock", "signatures", "verifications")

    def __init__(self) -> None:
        self.signatures = 0
        self.verifications = 0
        self._lock = Lock()

    def count_signature(self) -> None:
        """Count one signature made."""
        with self._lock:
            self.signatures += 1

    def count_verification(self) -> None:
        """Count one full verification, whatever its outcome."""
        with self._lock:
            self.verifications += 1


class Signer(Protocol):
    """A private key that signs. Safe to use from several threads."""

    @property
    def algorithm(self) -> Algorithm:
        """What it signs with."""
        ...

    @property
    def public_key(self) -> bytes:
        """The raw public key."""
        ...

    @property
    def key_id(self) -> bytes:
        """SHA-256 of the raw public key."""
        ...

    def sign(self, message: bytes, context: bytes) -> bytes:
        """Sign ``message`` under ``context``; a context over 255 bytes raises InvalidInputError."""
        ...


class Verifier(Protocol):
    """A public key that verifies. Safe to use from several threads."""

    @property
    def algorithm(self) -> Algorithm:
        """What its signatures are made with."""
        ...

    @property
    def public_key(self) -> bytes:
        """The raw public key."""
        ...

    @property
    def key_id(self) -> bytes:
        """SHA-256 of the raw public key."""
        ...

    def verify(self, signature: bytes, message: bytes, context: bytes) -> bool:
        """Tell whether ``signature`` is this key's over ``message`` and ``context``. It never raises."""
        ...


class SignatureBackend(Protocol):
    """One implementation of ML-DSA."""

    @property
    def name(self) -> str:
        """``openssl`` or ``liboqs``; every benchmark's output says which."""
        ...

    @property
    def counters(self) -> Counters:
        """What it has done in this process."""
        ...

    def signer(self, algorithm: Algorithm, seed: bytes) -> Signer:
        """Expand a 32-byte seed; another length raises InvalidInputError with reason ``bad_seed``."""
        ...

    def verifier(self, algorithm: Algorithm, public_key: bytes) -> Verifier:
        """Take a raw public key; a malformed one raises UntrustedError with reason ``bad_public_key``."""
        ...


def generate_seed() -> bytes:
    """Return a fresh private seed from the operating system's generator."""
    return secrets.token_bytes(SEED_BYTES)


def key_id(public_key: bytes) -> bytes:
    """Return the id of a raw public key: its SHA-256."""
    return sha256(public_key).digest()


def check_seed(seed: bytes) -> None:
    """Refuse a seed that is not 32 bytes long."""
    if len(seed) != SEED_BYTES:
        raise InvalidInputError(f"a private seed is {SEED_BYTES} bytes, not {len(seed)}", reason="bad_seed")


def check_context(context: bytes) -> None:
    """Refuse a context string that FIPS 204 does not allow."""
    if len(context) > MAX_CONTEXT_BYTES:
        raise InvalidInputError(
            f"a context is at most {MAX_CONTEXT_BYTES} bytes, not {len(context)}", reason="bad_context"
        )
