"""The code that proves a one-time token without sending it; host and fleet compute the same."""

from __future__ import annotations

import hashlib
import hmac

import msgpack

from tocsin.contracts.fleet import EnrolRequest

DOMAIN = b"tocsin/enrol/1"


def enrol_mac(token: bytes, request: EnrolRequest) -> bytes:
    """HMAC-SHA-256 of everything in the request that a certificate would promise.

    ``request.mac`` itself is left out. Lengths are unambiguous: the fields travel as one msgpack array.
    """
    fields = (
        DOMAIN,
        request.token_id,
        request.host,
        request.names_host,
        [(agent.name, agent.role.value) for agent in request.agents],
        request.algorithm,
        request.public_key,
    )
    return hmac.new(token, bytes(msgpack.packb(fields)), hashlib.sha256).digest()


def mac_matches(token: bytes, request: EnrolRequest) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(enrol_mac(token, request), request.mac)
