"""A certificate with the chain of its epoch, in one file: all that ``tocsin decision verify`` needs but the root.

    bundle = msgpack array ["tocsin-bundle", 1, certificate: bin, links: [bin...]]

``links`` are the certificates of the decisions that the certificate's chain names, in that order: each of them made
the next epoch. On the broker every one of them stands alone in the object store, so a certificate does not grow
with the chain (ADR 0016).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgpack

from tocsin.bus.envelope import unpack
from tocsin.contracts.errors import InvalidInputError
from tocsin.evidence.certificate import MAX_CERTIFICATE_BYTES, MAX_CHAIN

MAGIC = "tocsin-bundle"
VERSION = 1
MAX_BUNDLE_BYTES = 256 * 1024 * 1024
_BEGINS = b"\x94\xad" + MAGIC.encode()
"""An array of four, and a text of 13 bytes."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A decoded bundle; nothing in it is proven."""

    certificate: bytes = field(repr=False)
    links: tuple[bytes, ...] = field(repr=False)

    def encode(self) -> bytes:
        """Return the bundle's bytes.

        Raises:
            InvalidInputError: ``too_large``.
        """
        if (size := len(self.certificate) + sum(map(len, self.links))) > MAX_BUNDLE_BYTES:
            raise _too_large(size)
        return bytes(msgpack.packb((MAGIC, VERSION, self.certificate, self.links)))

    @classmethod
    def decode(cls, data: bytes) -> Bundle:
        """Decode a bundle.

        Raises:
            InvalidInputError: ``too_large``, ``bad_version`` or ``malformed``, for any other bytes.
        """
        if len(data) > MAX_BUNDLE_BYTES + 1024:
            raise _too_large(len(data))
        value = unpack(data, max_array=MAX_CHAIN + 1)
        if type(value) is not tuple or len(value) != 4 or value[0] != MAGIC:
            raise _malformed("no [magic, version, certificate, links]")
        _, version, certificate, links = value
        if type(version) is not int or version != VERSION:
            raise InvalidInputError(f"a bundle of version {version!r}, this is {VERSION}", reason="bad_version")
        if type(certificate) is not bytes or type(links) is not tuple:
            raise _malformed("no [magic, version, certificate, links]")
        if any(type(link) is not bytes or len(link) > MAX_CERTIFICATE_BYTES for link in links):
            raise _malformed("a link is no byte string, or too long")
        bundle = cls(certificate, links)
        if bundle.encode() != data:
            raise _malformed("not in the one encoding")
        return bundle


def is_bundle(data: bytes) -> bool:
    """Tell a bundle from a certificate by its first bytes."""
    return data.startswith(_BEGINS)


def _malformed(detail: str) -> InvalidInputError:
    return InvalidInputError(f"malformed bundle: {detail}", reason="malformed")


def _too_large(size: int) -> InvalidInputError:
    return InvalidInputError(
        f"a bundle of {size} bytes, at most {MAX_BUNDLE_BYTES}",
        reason="too_large",
        advice="have the root sign the current epoch: tocsin epoch checkpoint",
    )
