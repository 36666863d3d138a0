"""Choose who computes signatures: OpenSSL, always there, or liboqs, several times faster where installed.

There is one instance of each backend in a process, so that its counters say what the process has done.
"""

from __future__ import annotations

from functools import cache

from tocsin.contracts.errors import InvalidInputError, UnavailableError
from tocsin.crypto.backends.liboqs import LiboqsBackend
from tocsin.crypto.backends.openssl import OpenSslBackend
from tocsin.crypto.signatures import SignatureBackend

__all__ = ["available_backends", "select_backend"]


@cache
def _openssl() -> OpenSslBackend:
    return OpenSslBackend()


@cache  # a failure is not cached: the library may be installed later
def _liboqs() -> LiboqsBackend:
    return LiboqsBackend()


def available_backends() -> tuple[SignatureBackend, ...]:
    """Return the backends that work on this machine, the fastest first."""
    try:
        return _liboqs(), _openssl()
    except UnavailableError:
        return (_openssl(),)


def select_backend(preference: str = "auto") -> SignatureBackend:
    """Return the backend of that name; ``auto`` is the fastest that works.

    Raises:
        InvalidInputError: no backend has that name.
        UnavailableError: liboqs was asked for and its library is missing.
    """
    match preference:
        case "auto":
            return available_backends()[0]
        case "openssl":
            return _openssl()
        case "liboqs":
            return _liboqs()
        case _:
            raise InvalidInputError(
                f"unknown signature backend {preference[:40]!r}",
                reason="unknown_backend",
                advice="choose auto, openssl or liboqs (TOCSIN_SIGNATURE_BACKEND)",
            )
