"""A decision's certificate: everything that a third party needs to check a decision, in one piece of bytes.

    certificate = msgpack array [2, epoch: bin, chain: [bin...], proposal: bin, options: [bin...], before: [bin...],
                                 ballots: [bin...], votes: [bin...], keys: [bin...]]

``epoch`` is the envelope of the last epoch record that the root signed; ``chain`` names the decisions by which the
epochs after it were made, the oldest first, up to the one that decided here (none: the root's own did). ``proposal``
is the proposal's envelope; ``options`` those of the round in which it was decided, each as the msgpack map that its
digest is of, and ``before`` the VOTE2 of a quorum of consensus instances that committed these in the round before:
both are empty for a decision of the first round, whose options are the proposal's. ``ballots`` are those of a quorum
of participants for one option; ``votes`` the VOTE2 of a quorum of instances; ``keys`` the raw public keys of all of
them, which count only as far as their SHA-256 stands in the epoch record. There is one encoding: other bytes of the
same meaning are refused.

Decoding proves nothing: see :mod:`tocsin.evidence.verification`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import msgpack

from tocsin.bus.envelope import unpack
from tocsin.contracts.decisions import MAX_INSTANCES, MAX_OPTIONS, MAX_PARTICIPANTS
from tocsin.contracts.errors import InvalidInputError

VERSION = 2
MAX_CERTIFICATE_BYTES = 40 * 1024 * 1024
"""More than a quorum of 4,096 with a key each needs: 2,745 ballots of 5.5 kB and keys of 2.6 kB."""
MAX_CHAIN = 64
"""Epochs that are decided one after another before the root has to sign a checkpoint."""
MAX_KEYS = MAX_PARTICIPANTS + MAX_INSTANCES
MAX_KEY_BYTES = 2592
"""A raw ML-DSA-87 public key (FIPS 204, table 2)."""


@dataclass(frozen=True, slots=True)
class DecisionCertificate:
    """A decoded certificate; nothing in it is proven."""

    epoch: bytes = field(repr=False)
    proposal: bytes = field(repr=False)
    ballots: tuple[bytes, ...] = field(repr=False)
    votes: tuple[bytes, ...] = field(repr=False)
    keys: tuple[bytes, ...] = field(repr=False)
    chain: tuple[bytes, ...] = ()
    options: tuple[bytes, ...] = field(default=(), repr=False)
    before: tuple[bytes, ...] = field(default=(), repr=False)

    def encode(self) -> bytes:
        """Return the certificate's bytes.

        Raises:
            InvalidInputError: ``too_large``.
        """
        round_parts = (self.options, self.before, self.ballots, self.votes)
        parts = (VERSION, self.epoch, self.chain, self.proposal, *round_parts, self.keys)
        data = bytes(msgpack.packb(parts))
        if len(data) > MAX_CERTIFICATE_BYTES:
            raise _too_large(len(data))
        return data

    @classmethod
    def decode(cls, data: bytes) -> DecisionCertificate:
        """Decode a certificate.

        Raises:
            InvalidInputError: ``too_large``, ``bad_version`` or ``malformed``, for any other bytes.
        """
        if len(data) > MAX_CERTIFICATE_BYTES:
            raise _too_large(len(data))
        value = unpack(data, max_array=MAX_KEYS)
        if type(value) is not tuple or not value or type(value[0]) is not int:
            raise _malformed("no array that begins with a version")
        if value[0] != VERSION:
            raise InvalidInputError(f"certificate version {value[0]}, this is {VERSION}", reason="bad_version")
        if len(value) != 9 or type(value[1]) is not bytes or type(value[3]) is not bytes:
            raise _malformed("no [version, epoch, chain, proposal, options, before, ballots, votes, keys]")
        certificate = cls(
            epoch=value[1],
            chain=_list(value[2], MAX_KEYS, "chain"),
            proposal=value[3],
            options=_list(value[4], MAX_OPTIONS, "options"),
            before=_list(value[5], MAX_INSTANCES, "before"),
            ballots=_list(value[6], MAX_PARTICIPANTS, "ballots"),
            votes=_list(value[7], MAX_INSTANCES, "votes"),
            keys=_list(value[8], MAX_KEYS, "keys"),
        )
        check_chain(certificate.chain)
        if any(len(key) > MAX_KEY_BYTES for key in certificate.keys):
            raise _malformed("a key is too long")
        if certificate.encode() != data:
            raise _malformed("not in the one encoding")
        return certificate


def check_chain(chain: tuple[bytes, ...]) -> None:
    """Hold the bounds on a chain.

    Raises:
        InvalidInputError: ``chain_too_long`` or ``malformed``.
    """
    if len(chain) > MAX_CHAIN:
        raise InvalidInputError(
            f"{len(chain)} epochs were decided since the root signed one, at most {MAX_CHAIN}",
            reason="chain_too_long",
            advice="have the root sign the current epoch: tocsin epoch checkpoint",
        )
    if any(len(link) != 32 for link in chain) or len(set(chain)) != len(chain):
        raise _malformed("chain is no list of distinct digests")


def certificate_digest(data: bytes) -> bytes:
    """Return the digest that travels in announcements and orders."""
    return sha256(data).digest()


def _list(value: Any, most: int, what: str) -> tuple[bytes, ...]:
    if type(value) is not tuple or len(value) > most or any(type(item) is not bytes for item in value):
        raise _malformed(f"{what} is no list of at most {most} byte strings")
    return value


def _malformed(detail: str) -> InvalidInputError:
    return InvalidInputError(f"malformed certificate: {detail}", reason="malformed")


def _too_large(size: int) -> InvalidInputError:
    return InvalidInputError(
        f"certificate of {size} bytes, at most {MAX_CERTIFICATE_BYTES}", reason="too_large"
    )
