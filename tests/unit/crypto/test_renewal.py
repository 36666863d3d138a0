"""An intermediate can give longer life to what the root has certified, and do nothing else for a service."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from tocsin.contracts.errors import DeniedError, UntrustedError
from tocsin.contracts.identifiers import Role, ServiceName, SpiffeId
from tocsin.crypto import Authority, LocalKey, SignatureBackend, TrustStore
from tocsin.crypto.certificates import ParsedCertificate, renews

DOMAIN = "test.tocsin"
Issue = Callable[..., tuple[bytes, ...]]


@pytest.fixture
def store(root: Authority, openssl: SignatureBackend) -> TrustStore:
    return TrustStore(root.certificate_pem, openssl)


@pytest.fixture
def router(root: Authority) -> SpiffeId:
    return SpiffeId.service(root.id.domain, ServiceName.ROUTER, "0")


def test_a_renewal_lengthens_and_begins_where_the_root_began(
    store: TrustStore, *, root: Authority, fleet: Authority, issue: Issue, now: datetime, router: SpiffeId
) -> None:
    original = issue(0, [router], 3, issuer=root, now=now)
    held = store.add_chain(original)
    later = now + timedelta(hours=12)
    renewed = store.add_chain(fleet.renew(original[0], now=later).chain_der)
    assert renewed.ids == held.ids
    assert (renewed.generation, renewed.key_id) == (3, held.key_id)
    assert renewed.not_after_ns > held.not_after_ns
    assert renewed.not_before_ns == held.not_before_ns, "what was signed before still verifies"
    again = store.add_chain(fleet.renew(renewed.chain[-1], now=later + timedelta(hours=12)).chain_der)
    assert (again.not_before_ns, len(again.chain)) == (held.not_before_ns, 3)
    assert store.add_chain(original) == again, "an older chain changes nothing"


@pytest.mark.parametrize("swap", ["key", "ids", "generation", "original", "unsigned"])
def test_what_differs_from_the_roots_word_is_no_renewal(
    store: TrustStore,
    *,
    root: Authority,
    fleet: Authority,
    issue: Issue,
    now: datetime,
    router: SpiffeId,
    swap: str,
) -> None:
    other = SpiffeId.service(root.id.domain, ServiceName.FLEET, "0")
    original = issue(0, [router], 3, issuer=root, now=now)
    forged = {
        "key": issue(1, [router], 3, issuer=root, now=now),
        "ids": issue(0, [other], 3, issuer=root, now=now),
        "generation": issue(0, [router], 4, issuer=root, now=now),
        "original": issue(2, [router], 3, issuer=root, now=now),
        "unsigned": issue(0, [router], 3, issuer=Authority.create_root(root.id.domain, now=now), now=now),
    }[swap]
    leaf = fleet.renew(forged[0], now=now).der
    original = forged if swap == "unsigned" else original
    with pytest.raises(UntrustedError) as caught:
        store.add_chain((leaf, fleet.certificate.der, original[0]))
    assert caught.value.reason == ("wrong_root" if swap == "unsigned" else "bad_renewal")
    with pytest.raises(UntrustedError) as alone:
        store.add_chain((leaf, fleet.certificate.der))
    assert alone.value.reason == "beyond_authority"


def test_only_an_intermediate_renews_and_only_leaves(root: Authority, fleet: Authority, now: datetime) -> None:
    with pytest.raises(DeniedError):
        root.renew(fleet.certificate.der, now=now)
    with pytest.raises(UntrustedError):
        fleet.renew(fleet.certificate.der, now=now)


def test_a_renewal_does_not_begin_before_what_it_renews(
    root: Authority, fleet: Authority, issue: Issue, now: datetime, router: SpiffeId
) -> None:
    original = issue(0, [router], 3, issuer=root, now=now + timedelta(hours=1))
    early = ParsedCertificate.parse(fleet.renew(original[0], now=now).der)
    assert not renews(early, ParsedCertificate.parse(original[0]))


def test_a_revoked_authoritys_renewal_gives_way_to_the_roots_own_word(
    store: TrustStore, *, root: Authority, fleet: Authority, issue: Issue, now: datetime, router: SpiffeId
) -> None:
    original = issue(0, [router], 3, issuer=root, now=now)
    held = store.add_chain(original)
    store.add_chain(fleet.renew(original[0], now=now + timedelta(hours=1)).chain_der)
    store.revoke_key(fleet.signer.key_id)
    back = store.identity(held.key_id)
    assert back is not None
    assert (back.chain, back.not_after_ns) == (original, held.not_after_ns)
    assert not store.is_compromised(held.key_id)
    successor = root.issue_intermediate("fleet", now=now + timedelta(hours=1))
    assert len(store.add_chain(successor.renew(original[0], now=now + timedelta(hours=2)).chain_der).chain) == 3
    # The key itself revoked is worth nothing, whoever vouched for it.
    store.revoke_key(held.key_id)
    assert store.identity(held.key_id) is None
    assert store.is_compromised(held.key_id)


def test_a_successor_is_seen_by_the_roots_word_alone(
    store: TrustStore, *, root: Authority, fleet: Authority, issue: Issue, now: datetime, keys: list[LocalKey]
) -> None:
    hunters = [SpiffeId.agent(root.id.domain, Role.HUNTER, f"hunter-{number}") for number in range(2)]
    held = store.add_chain(issue(0, hunters[:1], now=now))
    assert not store.is_superseded(held.key_id)
    store.add_chain(
        issue(
            1,
            hunters[1:],
            issuer=root.issue_intermediate("other", now=now + timedelta(hours=1)),
            now=now + timedelta(hours=1),
        )
    )
    assert not store.is_superseded(held.key_id), "an authority of another name is no successor"
    successor = root.issue_intermediate("fleet", now=now + timedelta(hours=2))
    later = now + timedelta(hours=2)
    store.add_chain(issue(1, hunters[1:], 2, issuer=successor, now=later))
    assert store.is_superseded(held.key_id)
    renewed = store.add_chain(issue(0, hunters[:1], issuer=successor, now=later))
    assert renewed.not_before_ns == held.not_before_ns, "an authority continues what its predecessor began"
    assert not store.is_superseded(held.key_id)
    assert {one.key_id for one in store.certified_by(successor.signer.key_id)} == {
        keys[0].signer.key_id,
        keys[1].signer.key_id,
    }
    assert store.certified_by(fleet.signer.key_id) == ()
    store.revoke_key(fleet.signer.key_id)
    assert store.identity(held.key_id) is not None
