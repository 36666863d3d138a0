"""Whose keys a sealed message may name."""

from __future__ import annotations

import pytest

from tocsin.contracts.catalogue import COORDINATION, INTELLIGENCE
from tocsin.contracts.errors import DeniedError
from tocsin.contracts.identifiers import Role
from tocsin.contracts.routing import Intelligence, SealedBody
from tocsin.router.recipients import check_recipients

OWNERS = {
    b"h" * 32: frozenset({Role.HUNTER}),
    b"m" * 32: frozenset({Role.GUARDIAN, Role.ANALYST}),
    b"g" * 32: frozenset({Role.GUARDIAN}),
}


def sealed_to(keys: str) -> SealedBody:
    return SealedBody(recipients=tuple(key.encode() * 32 for key in keys))


def roles_of(key: bytes) -> frozenset[Role]:
    return OWNERS.get(key, frozenset())


@pytest.mark.parametrize("keys", ["h", "m", "hm"])
def test_keys_of_cleared_agents_may_be_named(keys: str) -> None:
    check_recipients(INTELLIGENCE, sealed_to(keys), roles_of)


@pytest.mark.parametrize("keys", ["g", "hg", "?", "hm?"])
def test_one_key_of_nobody_who_is_cleared_is_one_too_many(keys: str) -> None:
    with pytest.raises(DeniedError) as caught:
        check_recipients(INTELLIGENCE, sealed_to(keys), roles_of)
    assert caught.value.reason == "recipient_not_cleared"


def test_what_is_for_anybody_may_be_sealed_to_anybody() -> None:
    check_recipients(COORDINATION, sealed_to("g?"), roles_of)
    check_recipients(INTELLIGENCE, Intelligence(summary="open: the bus refuses it"), roles_of)
