"""Sign and verify with liboqs, several times faster than OpenSSL, where its shared library is installed.

The library is looked for *before* ``oqs`` is imported, because that import downloads and builds one when
it finds none. This module refuses instead.

liboqs has no seeded key generation for signatures in its API (0.16 has it for KEMs only), but its ML-DSA
key generation is FIPS 204 algorithm 1, whose only randomness is one draw of the 32-byte seed. So the
expanded key is derived by running that key generation with a random generator that hands the seed to the
one deriving thread and the operating system's randomness to every other caller; the system's generator is
put back afterwards. The public key so derived is then compared with the one that OpenSSL derives from the
same seed: a difference is :class:`InvariantBrokenError`, never a key that signs.

Limits: ML-DSA contexts are up to 255 bytes; a process that has chosen a generator of its own in liboqs
finds the system's after a key was derived; the expanded key lies in this process's memory unlocked.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib
import logging
import os
import platform
import threading
from pathlib import Path
from typing import Protocol, cast

from tocsin.contracts.errors import InvariantBrokenError, UnavailableError, UntrustedError
from tocsin.crypto.backends import openssl
from tocsin.crypto.signatures import (
    MAX_CONTEXT_BYTES,
    Algorithm,
    Counters,
    check_context,
    check_seed,
    key_id,
)

_ADVICE = (
    "install liboqs and liboqs-python and set OQS_INSTALL_PATH to its prefix, or choose the openssl backend"
)

_LIBRARY_FILES = {
    "Windows": ("bin/oqs.dll", "bin/liboqs.dll"),
    "Darwin": ("lib/liboqs.dylib", "lib64/liboqs.dylib"),
}
_LIBRARY_FILES_ELSEWHERE = ("lib/liboqs.so", "lib64/liboqs.so")


class _Mechanism(Protocol):
    """What we use of ``oqs.Signature``, which ships no types."""

    def generate_keypair(self) -> bytes: ...

    def export_secret_key(self) -> bytes: ...

    def sign_with_ctx_str(self, message: bytes, context: bytes) -> bytes: ...

    def verify_with_ctx_str(
        self, message: bytes, signature: bytes, context: bytes, public_key: bytes
    ) -> bool: ...


class _Module(Protocol):
    """What we use of the module ``oqs``."""

    def Signature(self, alg_name: str, secret_key: bytes | None = None) -> _Mechanism: ...  # noqa: N802

    def native(self) -> ctypes.CDLL: ...

    def oqs_version(self) -> str: ...


def find_library() -> Path | None:
    """Return where the shared library of liboqs is, or None.

    ``OQS_INSTALL_PATH`` is looked at first, then what the loader finds. A file that the loader cannot load
    counts as none.
    """
    candidates: list[Path] = []
    if prefix := os.environ.get("OQS_INSTALL_PATH"):
        names = _LIBRARY_FILES.get(platform.system(), _LIBRARY_FILES_ELSEWHERE)
        candidates += [path for name in names if (path := Path(prefix) / name).is_file()]
    if found := ctypes.util.find_library("oqs"):
        candidates.append(Path(found))
    return next(filter(_loads, candidates), None)


def _loads(path: Path) -> bool:
    try:
        ctypes.CDLL(str(path))
    except OSError:
        return False
    return True


def _import_oqs() -> _Module:
    """Import ``oqs`` if that is safe, and without the lines that it writes to standard output."""
    if find_library() is None:
        raise UnavailableError("the shared library of liboqs was not found", reason="no_liboqs", advice=_ADVICE)
    logging.getLogger("oqs.oqs").disabled = True
    try:
        module = importlib.import_module("oqs")
    except (ImportError, OSError, AttributeError, RuntimeError, SystemExit, Warning) as error:
        raise UnavailableError(f"liboqs does not load: {error}", reason="no_liboqs", advice=_ADVICE) from error
    return cast("_Module", module)


class _SeededGenerator:
    """Stands in for the random generator of liboqs while one thread derives a key from its seed."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._lock = threading.Lock()
        self._local = threading.local()
        signature = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t)
        self._callback = signature(self._fill)  # kept: liboqs may call it as long as the process lives

    def _fill(self, address: int, count: int) -> None:
        seed: bytes | None = getattr(self._local, "seed", None)
        self._local.seed = None
        if seed is None or count != len(seed):
            seed = os.urandom(count)
        ctypes.memmove(address, seed, count)

    def keypair(self, mechanism: _Mechanism, seed: bytes) -> bytes:
        """Run the key generation of ``mechanism`` with ``seed`` as its randomness; return the public key."""
        with self._lock:
            self._local.seed = seed
            self._library.OQS_randombytes_custom_algorithm(self._callback)
            try:
                return mechanism.generate_keypair()
            finally:
                self._library.OQS_randombytes_switch_algorithm(b"system")
                self._local.seed = None


class LiboqsSigner:
    """A private key held by liboqs."""

    def __init__(self, algorithm: Algorithm, mechanism: _Mechanism, raw: bytes, counters: Counters) -> None:
        self.algorithm = algorithm
        self._mechanism = mechanism
        self._counters = counters
        self.public_key = raw
        self.key_id = key_id(raw)

    def sign(self, message: bytes, context: bytes) -> bytes:
        """Sign ``message`` under ``context``."""
        check_context(context)
        self._counters.count_signature()
        try:
            return self._mechanism.sign_with_ctx_str(message, context)
        except RuntimeError as error:
            raise InvariantBrokenError("liboqs failed to sign", reason="signing_failed") from error


class LiboqsVerifier:
    """A public key for liboqs."""

    def __init__(self, algorithm: Algorithm, mechanism: _Mechanism, raw: bytes, counters: Counters) -> None:
        self.algorithm = algorithm
        self._mechanism = mechanism
        self._counters = counters
        self.public_key = raw
        self.key_id = key_id(raw)

    def verify(self, signature: bytes, message: bytes, context: bytes) -> bool:
        """Tell whether ``signature`` is valid. One of the wrong length costs nothing and is not counted."""
        if len(signature) != self.algorithm.signature_bytes or len(context) > MAX_CONTEXT_BYTES:
            return False
        self._counters.count_verification()
        return self._mechanism.verify_with_ctx_str(message, signature, context, self.public_key)


class LiboqsBackend:
    """ML-DSA by liboqs. Constructing it raises :class:`UnavailableError` where the library is missing."""

    name = "liboqs"

    def __init__(self) -> None:
        self.counters = Counters()
        self._oqs = _import_oqs()
        self._generator = _SeededGenerator(self._oqs.native())
        # liboqs takes the public key with each call, so one mechanism serves every verifier.
        self._mechanisms = {algorithm: self._mechanism(algorithm) for algorithm in Algorithm}

    def _mechanism(self, algorithm: Algorithm) -> _Mechanism:
        try:
            return self._oqs.Signature(algorithm.label)
        except Exception as error:  # the classes that oqs raises derive from Exception only
            raise UnavailableError(
                f"this liboqs has no {algorithm.label}", reason="no_liboqs", advice=_ADVICE
            ) from error

    def signer(self, algorithm: Algorithm, seed: bytes) -> LiboqsSigner:
        """Return the signer of ``seed``: derive the expanded key, and check it against OpenSSL's."""
        check_seed(seed)
        mechanism = self._mechanism(algorithm)
        raw = self._generator.keypair(mechanism, seed)
        if raw != openssl.private_key(algorithm, seed).public_key().public_bytes_raw():
            raise InvariantBrokenError("liboqs and OpenSSL derive different keys from one seed")
        return LiboqsSigner(algorithm, mechanism, raw, self.counters)

    def verifier(self, algorithm: Algorithm, public_key: bytes) -> LiboqsVerifier:
        """Return the verifier of a raw public key."""
        if len(public_key) != algorithm.public_key_bytes:
            raise UntrustedError(f"not a public key of {algorithm.label}", reason="bad_public_key")
        return LiboqsVerifier(algorithm, self._mechanisms[algorithm], public_key, self.counters)
