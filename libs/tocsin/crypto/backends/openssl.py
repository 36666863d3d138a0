"""Sign and verify with the OpenSSL inside the ``cryptography`` wheel: the backend that is always there.

OpenSSL releases the interpreter lock while it computes, so worker threads run truly beside the event loop.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import mldsa

from tocsin.contracts.errors import InvalidInputError, UntrustedError
from tocsin.crypto.signatures import (
    MAX_CONTEXT_BYTES,
    Algorithm,
    Counters,
    check_context,
    check_seed,
    key_id,
)

PrivateKey = mldsa.MLDSA44PrivateKey | mldsa.MLDSA65PrivateKey | mldsa.MLDSA87PrivateKey
"""A private key as the ``cryptography`` package holds it: X.509 and PKCS #8 want this form."""

PublicKey = mldsa.MLDSA44PublicKey | mldsa.MLDSA65PublicKey | mldsa.MLDSA87PublicKey
"""A public key as the ``cryptography`` package holds it."""

_PRIVATE: dict[Algorithm, type[PrivateKey]] = {
    Algorithm.ML_DSA_44: mldsa.MLDSA44PrivateKey,
    Algorithm.ML_DSA_65: mldsa.MLDSA65PrivateKey,
    Algorithm.ML_DSA_87: mldsa.MLDSA87PrivateKey,
}
_PUBLIC: dict[Algorithm, type[PublicKey]] = {
    Algorithm.ML_DSA_44: mldsa.MLDSA44PublicKey,
    Algorithm.ML_DSA_65: mldsa.MLDSA65PublicKey,
    Algorithm.ML_DSA_87: mldsa.MLDSA87PublicKey,
}


def private_key(algorithm: Algorithm, seed: bytes) -> PrivateKey:
    """Return the private key of ``seed``; a malformed seed raises InvalidInputError."""
    check_seed(seed)
    return _PRIVATE[algorithm].from_seed_bytes(seed)


def public_key(algorithm: Algorithm, raw: bytes) -> PublicKey:
    """Return the public key of ``raw``; a malformed one raises UntrustedError, reason ``bad_public_key``."""
    try:
        return _PUBLIC[algorithm].from_public_bytes(raw)
    except ValueError as error:
        raise UntrustedError(f"not a public key of {algorithm.label}", reason="bad_public_key") from error


def private_algorithm(key: object) -> Algorithm:
    """Return the algorithm of a loaded private key; a key of another kind raises InvalidInputError."""
    for algorithm, kind in _PRIVATE.items():
        if isinstance(key, kind):
            return algorithm
    raise InvalidInputError(f"not an ML-DSA private key: {type(key).__name__}", reason="bad_key_file")


def public_algorithm(key: object) -> Algorithm:
    """Return the algorithm of a loaded public key; a key of another kind raises UntrustedError."""
    for algorithm, kind in _PUBLIC.items():
        if isinstance(key, kind):
            return algorithm
    raise UntrustedError(f"not an ML-DSA public key: {type(key).__name__}", reason="bad_public_key")


class OpenSslSigner:
    """A private key held by OpenSSL."""

    def __init__(self, algorithm: Algorithm, seed: bytes, counters: Counters) -> None:
        self.algorithm = algorithm
        self._key = private_key(algorithm, seed)
        self._counters = counters
        self.public_key = self._key.public_key().public_bytes_raw()
        self.key_id = key_id(self.public_key)

    def sign(self, message: bytes, context: bytes) -> bytes:
        """Sign ``message`` under ``context``."""
        check_context(context)
        self._counters.count_signature()
        return self._key.sign(message, context)


class OpenSslVerifier:
    """A public key held by OpenSSL."""

    def __init__(self, algorithm: Algorithm, raw: bytes, counters: Counters) -> None:
        self.algorithm = algorithm
        self._key = public_key(algorithm, raw)
        self._counters = counters
        self.public_key = raw
        self.key_id = key_id(raw)

    def verify(self, signature: bytes, message: bytes, context: bytes) -> bool:
        """Tell whether ``signature`` is valid. One of the wrong length costs nothing and is not counted."""
        if len(signature) != self.algorithm.signature_bytes or len(context) > MAX_CONTEXT_BYTES:
            return False
        self._counters.count_verification()
        try:
            self._key.verify(signature, message, context)
        except InvalidSignature:
            return False
        return True


class OpenSslBackend:
    """ML-DSA by OpenSSL."""

    name = "openssl"

    def __init__(self) -> None:
        self.counters = Counters()

    def signer(self, algorithm: Algorithm, seed: bytes) -> OpenSslSigner:
        """Return the signer of ``seed``."""
        return OpenSslSigner(algorithm, seed, self.counters)

    def verifier(self, algorithm: Algorithm, public_key: bytes) -> OpenSslVerifier:
        """Return the verifier of a raw public key."""
        return OpenSslVerifier(algorithm, public_key, self.counters)
