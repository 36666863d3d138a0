"""A trust store believes a chain to its own root, within what each authority may vouch for, and no other."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from tocsin.contracts.errors import ExhaustedError, InvalidInputError, UntrustedError
from tocsin.contracts.identifiers import Role, ServiceName, SpiffeId
from tocsin.crypto import (
    MAX_CERTIFICATE_BYTES,
    MAX_NAMES,
    Algorithm,
    Authority,
    LocalKey,
    SignatureBackend,
    TrustStore,
    trust,
)
from tocsin.crypto.backends.openssl import private_key, public_key
from tocsin.crypto.certificates import GENERATION_OID, generation_extension

DOMAIN = "tocsin.test"
DAY = timedelta(days=1)
HUNTER = f"spiffe://{DOMAIN}/agent/hunter/hunter-0"
ROUTER = f"spiffe://{DOMAIN}/service/router/router-1"

Issue = Callable[..., tuple[bytes, ...]]


def _reason(store: TrustStore, *chain: bytes) -> str:
    with pytest.raises(UntrustedError) as caught:
        store.add_chain(chain)
    return caught.value.reason


class Forger:
    """Who has stolen the key called ``subject``, and signs whatever it likes, not what the profile allows."""

    def __init__(self, subject: x509.Name, algorithm: Algorithm, seed: bytes, now: datetime) -> None:
        self.subject = subject
        self.private_key = private_key(algorithm, seed)
        self.now = now

    @classmethod
    def with_key_of(cls, authority: Authority, now: datetime) -> Forger:
        return cls(authority.certificate.certificate.subject, authority.signer.algorithm, authority._seed, now)

    def forge(
        self,
        key: LocalKey,
        *,
        uris: tuple[str, ...] = (HUNTER,),
        names: list[x509.GeneralName] | None = None,
        begin: timedelta = timedelta(0),
        end: timedelta = DAY,
        ca: bool = False,
        path_length: int | None = None,
        usage: tuple[bool, bool] | None = (True, False),
        generation: x509.ExtensionType | None = None,
        extra: tuple[x509.ExtensionType, ...] = (),
        signing_key: Ed25519PrivateKey | None = None,
    ) -> bytes:
        """Return a certificate; ``usage`` is (digital signature, certificate signing), None to leave out."""
        names = names if names is not None else [x509.UniformResourceIdentifier(uri) for uri in uris]
        extensions: list[tuple[x509.ExtensionType, bool]] = [
            (x509.SubjectAlternativeName(names), True),
            (x509.BasicConstraints(ca=ca, path_length=path_length), True),
            (generation or generation_extension(1), False),
            *((extension, True) for extension in extra),
        ]
        if usage:
            flags = [usage[0], False, False, False, False, usage[1], False, False, False]
            extensions.append((x509.KeyUsage(*flags), True))
        builder = (
            x509.CertificateBuilder()
            .subject_name(self.subject if ca else x509.Name([]))
            .issuer_name(self.subject)
            .serial_number(1)
            .not_valid_before(self.now + begin)
            .not_valid_after(self.now + end)
            .public_key(signing_key.public_key() if signing_key else public_key(*_public(key)))
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(self.private_key, None).public_bytes(Encoding.DER)


def _public(key: LocalKey) -> tuple[Algorithm, bytes]:
    return key.algorithm, key.signer.public_key


@pytest.fixture(scope="module")
def by_root(root: Authority, now: datetime) -> Forger:
    return Forger.with_key_of(root, now)


@pytest.fixture(scope="module")
def by_fleet(fleet: Authority, now: datetime) -> Forger:
    return Forger.with_key_of(fleet, now)


def test_a_chain_identifies_its_key(
    store: TrustStore, issue: Issue, agents: list[SpiffeId], keys: list[LocalKey], now: datetime
) -> None:
    chain = issue(0, [SpiffeId.host(DOMAIN, "host-1"), *agents], 5)
    identity = store.add_chain(chain)
    assert identity is store.identity(keys[0].signer.key_id)
    assert identity.ids == {f"spiffe://{DOMAIN}/host/host-1", *map(str, agents)}
    assert identity.names(HUNTER)
    assert not identity.names(ROUTER)
    assert (identity.domain, identity.generation, identity.chain) == (DOMAIN, 5, chain)
    assert identity.public_key == keys[0].signer.public_key
    assert identity.verifier.verify(keys[0].signer.sign(b"m", b"c"), b"m", b"c")
    moment = int(now.timestamp()) * 10**9
    assert identity.valid_at(moment)
    assert not identity.valid_at(moment + 25 * 3600 * 10**9)
    assert not identity.valid_at(moment - 61 * 10**9)
    assert len(store) == 1


def test_the_root_vouches_for_services(store: TrustStore, issue: Issue, root: Authority) -> None:
    chain = issue(0, [SpiffeId.service(DOMAIN, ServiceName.ROUTER, "router-1")], issuer=root)
    assert store.add_chain(chain).names(ROUTER)


def test_a_forged_certificate_in_good_order_is_accepted(
    store: TrustStore, by_fleet: Forger, fleet: Authority, keys: list[LocalKey]
) -> None:
    """What the refusals below differ from: without it they could all be for one wrong reason."""
    assert store.add_chain([by_fleet.forge(keys[0]), fleet.certificate.der]).names(HUNTER)


def test_an_unknown_key_has_no_identity(store: TrustStore) -> None:
    assert store.identity(bytes(32)) is None
    assert store.identity(b"") is None


def test_the_root_itself_is_known_apart(store: TrustStore, root: Authority) -> None:
    assert store.domain == DOMAIN
    assert store.root_fingerprint == root.certificate.certificate.fingerprint(SHA256()).hex()
    assert store.root.public_key == root.signer.public_key
    assert store.identity(store.root.key_id) is None


def test_another_root_is_not_ours(
    store: TrustStore, issue: Issue, now: datetime, openssl: SignatureBackend, agents: list[SpiffeId]
) -> None:
    stranger = Authority.create_root(DOMAIN, now=now, backend=openssl, algorithm=Algorithm.ML_DSA_44)
    strangers_fleet = stranger.issue_intermediate("fleet", now=now)
    for issuer in (stranger, strangers_fleet):
        assert _reason(store, *issue(0, agents, issuer=issuer)) == "wrong_root"


def test_the_chain_must_be_complete_and_in_order(
    store: TrustStore, issue: Issue, agents: list[SpiffeId], root: Authority
) -> None:
    leaf, intermediate = issue(0, agents)
    assert _reason(store, leaf) == "wrong_root"
    assert _reason(store, intermediate) == "bad_certificate"
    assert _reason(store, intermediate, leaf) == "wrong_root"
    assert _reason(store) == "bad_certificate"
    assert _reason(store, leaf, intermediate, root.certificate.der) == "bad_certificate"
    assert _reason(store, root.certificate.der) == "bad_certificate"
    assert _reason(store, leaf, root.certificate.der) in {"bad_certificate", "wrong_root"}


def test_a_leaf_is_no_intermediate(store: TrustStore, by_root: Forger, keys: list[LocalKey]) -> None:
    """A host that signs with its own key vouches for nobody."""
    der = by_root.forge(keys[0])
    host = Forger(x509.Name([]), keys[0].algorithm, keys[0].seed, by_root.now)
    assert _reason(store, host.forge(keys[1]), der) == "bad_certificate"


@pytest.mark.parametrize(
    ("uris", "reason"),
    [
        pytest.param((ROUTER,), "beyond_authority", id="a service"),
        pytest.param((HUNTER, ROUTER), "beyond_authority", id="a service among agents"),
        pytest.param((f"spiffe://{DOMAIN}/authority/fleet",), "beyond_authority", id="an authority"),
        pytest.param((HUNTER.replace(DOMAIN, "evil.test"),), "wrong_domain", id="another domain"),
        pytest.param((HUNTER.replace(DOMAIN, f"x.{DOMAIN}"),), "wrong_domain", id="a subdomain"),
        pytest.param((HUNTER, HUNTER), "bad_names", id="one id twice"),
        pytest.param(
            (HUNTER, f"spiffe://{DOMAIN}/agent/admin/admin-1"), "shared_key", id="an admin in company"
        ),
        pytest.param(("https://tocsin.test/agent/hunter/x",), "bad_certificate", id="no SPIFFE id"),
        pytest.param((f"{HUNTER}/more",), "bad_certificate", id="a path too long"),
        pytest.param((HUNTER.replace("hunter-0", "HUNTER"),), "bad_certificate", id="another case"),
        pytest.param((f"{HUNTER}%2f",), "bad_certificate", id="an escape"),
        pytest.param(("",), "bad_certificate", id="an empty name"),
    ],
)
def test_an_intermediate_with_a_stolen_key_cannot_vouch_for(
    store: TrustStore,
    by_fleet: Forger,
    fleet: Authority,
    keys: list[LocalKey],
    *,
    uris: tuple[str, ...],
    reason: str,
) -> None:
    assert _reason(store, by_fleet.forge(keys[0], uris=uris), fleet.certificate.der) == reason
    assert len(store) == 0


FORGED_FORMS: dict[str, tuple[dict[str, object], str]] = {
    "an authority as leaf": ({"ca": True, "usage": (True, True)}, "bad_certificate"),
    "may sign certificates": ({"usage": (True, True)}, "bad_certificate"),
    "may not sign messages": ({"usage": (False, False)}, "bad_certificate"),
    "no key usage": ({"usage": None}, "bad_certificate"),
    "no names": ({"names": []}, "bad_certificate"),
    "a DNS name": ({"names": [x509.DNSName(DOMAIN)]}, "bad_certificate"),
    "a DNS name beside the id": (
        {"names": [x509.UniformResourceIdentifier(HUNTER), x509.DNSName(DOMAIN)]},
        "bad_certificate",
    ),
    "an unknown critical extension": (
        {"extra": (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\x05\x00"),)},
        "bad_certificate",
    ),
    "a name constraint on a leaf": (
        {"extra": (x509.NameConstraints([x509.UniformResourceIdentifier(DOMAIN)], None),)},
        "bad_certificate",
    ),
    "a generation that is no integer": (
        {"generation": x509.UnrecognizedExtension(GENERATION_OID, b"\x04\x01\x01")},
        "bad_certificate",
    ),
    "a generation not in DER": (
        {"generation": x509.UnrecognizedExtension(GENERATION_OID, b"\x02\x02\x00\x01")},
        "bad_certificate",
    ),
    "a negative generation": (
        {"generation": x509.UnrecognizedExtension(GENERATION_OID, b"\x02\x01\xff")},
        "bad_certificate",
    ),
    "an empty generation": (
        {"generation": x509.UnrecognizedExtension(GENERATION_OID, b"")},
        "bad_certificate",
    ),
    "no generation": ({"generation": x509.OCSPNoCheck()}, "bad_certificate"),
    "longer than its issuer": ({"end": timedelta(days=5000)}, "bad_validity"),
    "earlier than its issuer": ({"begin": -timedelta(days=1)}, "bad_validity"),
    "a key of another algorithm": ({"signing_key": Ed25519PrivateKey.generate()}, "bad_public_key"),
}


@pytest.mark.parametrize("case", FORGED_FORMS)
def test_a_leaf_out_of_form_is_refused(
    store: TrustStore, by_root: Forger, keys: list[LocalKey], case: str
) -> None:
    changes, reason = FORGED_FORMS[case]
    assert _reason(store, by_root.forge(keys[0], **changes)) == reason  # type: ignore[arg-type]


FORGED_INTERMEDIATES: dict[str, tuple[dict[str, object], str]] = {
    "no path length": ({"path_length": None}, "bad_certificate"),
    "path length 1": ({"path_length": 1}, "bad_certificate"),
    "no certificate signing": ({"usage": (True, False)}, "bad_certificate"),
    "no name constraint": ({"extra": ()}, "bad_certificate"),
    "constrained to another domain": (
        {"extra": (x509.NameConstraints([x509.UniformResourceIdentifier("evil.test")], None),)},
        "bad_certificate",
    ),
    "with an exclusion": (
        {
            "extra": (
                x509.NameConstraints(
                    [x509.UniformResourceIdentifier(DOMAIN)], [x509.UniformResourceIdentifier("a.test")]
                ),
            )
        },
        "bad_certificate",
    ),
    "an agent's id": ({"uris": (HUNTER,)}, "bad_certificate"),
    "another domain's id": ({"uris": ("spiffe://evil.test/authority/fleet",)}, "bad_certificate"),
    "longer than the root": ({"end": timedelta(days=5000)}, "bad_validity"),
}


@pytest.mark.parametrize("case", [None, *FORGED_INTERMEDIATES])
def test_an_intermediate_out_of_form_vouches_for_nobody(
    store: TrustStore, by_root: Forger, keys: list[LocalKey], case: str | None
) -> None:
    form: dict[str, object] = {
        "uris": (f"spiffe://{DOMAIN}/authority/field",),
        "ca": True,
        "path_length": 0,
        "usage": (False, True),
        "end": timedelta(days=30),
        "extra": (x509.NameConstraints([x509.UniformResourceIdentifier(DOMAIN)], None),),
    }
    changes, reason = FORGED_INTERMEDIATES[case] if case else ({}, "")
    intermediate = by_root.forge(keys[0], **(form | changes))  # type: ignore[arg-type]
    forger = Forger(by_root.subject, keys[0].algorithm, keys[0].seed, by_root.now)
    leaf = forger.forge(keys[1])
    if case is None:
        assert store.add_chain([leaf, intermediate]).names(HUNTER)
    else:
        assert _reason(store, leaf, intermediate) == reason


def test_a_host_may_carry_2048_names_and_no_more(
    store: TrustStore, issue: Issue, by_fleet: Forger, fleet: Authority, keys: list[LocalKey]
) -> None:
    ids = [SpiffeId.agent(DOMAIN, Role.SENTINEL, f"sentinel-{number:05d}") for number in range(MAX_NAMES + 1)]
    assert len(store.add_chain(issue(0, ids[:MAX_NAMES])).ids) == MAX_NAMES
    over = by_fleet.forge(keys[1], uris=tuple(map(str, ids)))
    assert _reason(store, over, fleet.certificate.der) == "bad_names"


def test_an_oversize_certificate_is_not_parsed(
    store: TrustStore, monkeypatch: pytest.MonkeyPatch, fleet: Authority
) -> None:
    parsed: list[bytes] = []
    monkeypatch.setattr(x509, "load_der_x509_certificate", parsed.append)
    assert _reason(store, bytes(MAX_CERTIFICATE_BYTES + 1), fleet.certificate.der) == "bad_certificate"
    assert parsed == []


def test_an_expired_certificate_is_known_but_not_valid(
    store: TrustStore, issue: Issue, agents: list[SpiffeId], now: datetime
) -> None:
    """A stored message is judged at the moment of its issue, so the store must still know the key."""
    identity = store.add_chain(issue(0, agents, lifetime=timedelta(seconds=1)))
    moment = int(now.timestamp()) * 10**9
    assert identity.valid_at(moment)
    assert not identity.valid_at(moment + 2 * 10**9)
    assert store.forget_expired(moment) == 0
    assert store.forget_expired(moment + 2 * 10**9) == 1
    assert store.identity(identity.key_id) is None
    assert _reason(store, *issue(1, agents, 0)) == "stale_generation"


def test_a_lower_generation_is_stale(store: TrustStore, issue: Issue, agents: list[SpiffeId]) -> None:
    older = issue(0, agents, 4)
    store.add_chain(issue(1, agents, 5))
    assert _reason(store, *older) == "stale_generation"
    assert _reason(store, *issue(1, agents[:1], 4)) == "stale_generation"


def test_one_stale_id_refuses_the_chain(store: TrustStore, issue: Issue, agents: list[SpiffeId]) -> None:
    store.add_chain(issue(0, agents[:1], 5))
    assert _reason(store, *issue(1, agents, 4)) == "stale_generation"
    assert len(store) == 1


def test_one_generation_has_one_key(store: TrustStore, issue: Issue, agents: list[SpiffeId]) -> None:
    """Two keys in one generation: whoever comes second was not enrolled properly."""
    first = issue(0, agents)
    store.add_chain(first)
    assert _reason(store, *issue(1, agents)) == "stale_generation"
    assert store.add_chain(first).ids == frozenset(map(str, agents))


def test_the_next_generation_overlaps_with_the_one_before(
    store: TrustStore, issue: Issue, agents: list[SpiffeId], keys: list[LocalKey]
) -> None:
    store.add_chain(issue(0, agents, 1))
    store.add_chain(issue(1, agents, 2))
    assert store.identity(keys[0].signer.key_id) is not None
    store.add_chain(issue(2, agents, 3))
    assert store.identity(keys[0].signer.key_id) is None
    assert store.identity(keys[1].signer.key_id) is not None
    assert len(store) == 2


def test_a_generation_that_skips_one_takes_the_ids_at_once(
    store: TrustStore, issue: Issue, agents: list[SpiffeId], keys: list[LocalKey]
) -> None:
    store.add_chain(issue(0, agents, 1))
    store.add_chain(issue(1, agents, 2))
    store.add_chain(issue(2, agents[:1], 4))
    for key in keys[:2]:
        identity = store.identity(key.signer.key_id)
        assert identity is not None
        assert identity.ids == frozenset(map(str, agents[1:]))
    store.add_chain(issue(2, agents, 5))
    assert [store.identity(key.signer.key_id) is None for key in keys[:3]] == [True, True, False]


def test_a_renewal_under_the_same_key_ends_the_overlap(
    store: TrustStore, issue: Issue, agents: list[SpiffeId], keys: list[LocalKey]
) -> None:
    store.add_chain(issue(0, agents, 1))
    store.add_chain(issue(1, agents, 2))
    store.add_chain(issue(1, agents, 3))
    assert store.identity(keys[0].signer.key_id) is None


def test_of_two_certificates_of_one_key_the_later_counts(
    store: TrustStore, issue: Issue, agents: list[SpiffeId], now: datetime
) -> None:
    older = issue(0, agents[:1])
    newer = store.add_chain(issue(0, agents, now=now + timedelta(hours=12)))
    assert store.add_chain(older) is newer
    assert store.identity(newer.key_id) is newer


def test_a_renewed_certificate_still_covers_what_its_key_signed_before(
    store: TrustStore, *, issue: Issue, agents: list[SpiffeId], now: datetime
) -> None:
    first = store.add_chain(issue(0, agents))
    second = issue(0, agents, 2, now=now + timedelta(hours=12))
    store.add_chain(second)
    held = store.add_chain(issue(0, agents, 2, now=now + timedelta(hours=20)))
    assert held.valid_at(first.not_before_ns)
    assert not held.valid_at(first.not_before_ns - 1)
    assert store.add_chain(second) is held, "the later still counts"


def test_a_renewal_covers_no_gap_and_no_other_ids(
    store: TrustStore, *, issue: Issue, agents: list[SpiffeId], now: datetime
) -> None:
    first = store.add_chain(issue(0, agents[:1]))
    other = store.add_chain(issue(0, agents[:2], 2, now=now + timedelta(hours=12)))
    assert not other.valid_at(first.not_before_ns)
    late = store.add_chain(issue(0, agents[:2], 3, now=now + timedelta(hours=48)))
    assert not late.valid_at(other.not_before_ns)


def test_a_revoked_key_is_gone_for_good(
    store: TrustStore, issue: Issue, agents: list[SpiffeId], keys: list[LocalKey]
) -> None:
    store.add_chain(issue(0, agents))
    store.revoke_key(keys[0].signer.key_id)
    assert store.identity(keys[0].signer.key_id) is None
    assert _reason(store, *issue(0, agents)) == "revoked"
    assert _reason(store, *issue(0, agents, 2)) == "revoked"
    assert store.add_chain(issue(1, agents, 2)).names(HUNTER)


def test_a_key_can_be_revoked_before_it_is_seen(
    store: TrustStore, issue: Issue, agents: list[SpiffeId], keys: list[LocalKey]
) -> None:
    store.revoke_key(keys[0].signer.key_id)
    assert _reason(store, *issue(0, agents)) == "revoked"


def test_a_revoked_intermediate_takes_its_identities_with_it(
    store: TrustStore, *, root: Authority, fleet: Authority, issue: Issue, now: datetime, agents: list[SpiffeId]
) -> None:
    store.add_chain(issue(0, agents, 2**62))
    service = store.add_chain(issue(1, [SpiffeId.service(DOMAIN, ServiceName.ROUTER, "router-1")], issuer=root))
    store.revoke_key(fleet.signer.key_id)
    assert len(store) == 1
    assert store.identity(service.key_id) is service
    assert _reason(store, *issue(0, agents)) == "revoked"
    successor = root.issue_intermediate("fleet-2", now=now)
    assert store.add_chain(issue(2, agents, 1, issuer=successor)).names(HUNTER)


def test_what_a_compromised_authority_vouched_for_is_not_believed_until_another_does(
    store: TrustStore, *, root: Authority, fleet: Authority, issue: Issue, now: datetime, agents: list[SpiffeId]
) -> None:
    """So that a message that was looked at before the list came is not taken after it."""
    leaf = store.add_chain(issue(0, agents)).key_id
    service = store.add_chain(issue(1, [SpiffeId.service(DOMAIN, ServiceName.ROUTER, "router-1")], issuer=root))
    store.revoke_key(fleet.signer.key_id)
    assert (store.is_compromised(leaf), store.is_revoked(leaf)) == (True, False)
    assert not store.is_compromised(service.key_id)
    assert _reason(store, *issue(0, agents)) == "revoked"
    assert store.is_compromised(leaf)
    store.add_chain(issue(0, agents, 2, issuer=root.issue_intermediate("fleet-2", now=now)))
    assert not store.is_compromised(leaf)


def test_a_revoked_root_ends_everything(
    store: TrustStore, root: Authority, issue: Issue, agents: list[SpiffeId]
) -> None:
    store.add_chain(issue(0, agents))
    store.revoke_key(root.signer.key_id)
    assert len(store) == 0
    assert _reason(store, *issue(0, agents)) == "revoked"


def test_a_retired_key_speaks_until_that_moment_and_is_not_renewed(
    store: TrustStore, issue: Issue, agents: list[SpiffeId], keys: list[LocalKey], now: datetime
) -> None:
    key_id = keys[0].signer.key_id
    moment_ns = int(now.timestamp() * 1e9) + 60 * 10**9
    whole = store.add_chain(issue(0, agents))
    store.revoke((), {key_id: moment_ns})
    held = store.identity(key_id)
    assert held is not None
    assert (held.valid_at(moment_ns), held.valid_at(moment_ns + 1)) == (True, False)
    assert held.ids == whole.ids
    assert (store.is_revoked(key_id), store.is_compromised(key_id)) == (True, False)
    assert not store.add_chain(issue(0, agents, 2)).valid_at(moment_ns + 1), "nor with another certificate"
    store.revoke((), {key_id: moment_ns + 10**9})
    again = store.identity(key_id)
    assert again is not None
    assert again.not_after_ns == moment_ns, "an earlier moment stays"
    store.revoke((), {key_id: whole.not_before_ns})
    assert _reason(store, *issue(0, agents, 3)) == "revoked"
    store.revoke((key_id,))
    assert store.identity(key_id) is None, "compromised is stronger"


def test_a_retired_authority_certifies_nobody_any_more(
    store: TrustStore, fleet: Authority, issue: Issue, agents: list[SpiffeId]
) -> None:
    held = store.add_chain(issue(0, agents[:1]))
    store.revoke((), {fleet.signer.key_id: held.not_before_ns})
    assert store.identity(held.key_id) is held, "what it has certified stays"
    assert _reason(store, *issue(1, agents[1:2])) == "revoked"


def test_keys_are_found_by_whoever_they_speak_for(
    store: TrustStore, *, root: Authority, fleet: Authority, issue: Issue, agents: list[SpiffeId]
) -> None:
    held = store.add_chain(issue(0, agents))
    router = SpiffeId.service(DOMAIN, ServiceName.ROUTER, "0")
    service = store.add_chain(issue(1, [router], issuer=root))
    one = agents[0]
    for name in (str(one), one.token, one.name):
        assert store.keys_of(name) == {held.key_id: held.ids}
    for name in (str(router), "service.router.0"):
        assert store.keys_of(name) == {service.key_id: service.ids}
    assert store.keys_of("authority.fleet") == {fleet.signer.key_id: held.ids}
    assert store.keys_of("0") == {}, "the instances of all services are called so"
    assert store.keys_of("nobody") == {}


def test_a_full_store_takes_nobody_new(
    root: Authority, openssl: SignatureBackend, issue: Issue, agents: list[SpiffeId]
) -> None:
    store = TrustStore(root.certificate_pem, openssl, max_identities=2)
    store.add_chain(issue(0, agents[:1]))
    store.add_chain(issue(1, agents[1:2]))
    with pytest.raises(ExhaustedError):
        store.add_chain(issue(2, agents[2:3]))
    assert store.add_chain(issue(1, agents[1:2], 2)).generation == 2
    assert len(store) == 2


def test_the_number_of_known_names_is_bounded(
    store: TrustStore, issue: Issue, agents: list[SpiffeId], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust, "MAX_KNOWN_NAMES", 3)
    store.add_chain(issue(0, agents[:3]))
    with pytest.raises(ExhaustedError):
        store.add_chain(issue(1, agents[3:]))


def test_a_root_has_to_be_one(openssl: SignatureBackend, fleet: Authority, issue: Issue) -> None:
    leaf = x509.load_der_x509_certificate(issue(0, [SpiffeId.parse(HUNTER)])[0]).public_bytes(Encoding.PEM)
    for pem in (b"", b"no PEM", fleet.certificate_pem, leaf):
        with pytest.raises(InvalidInputError) as caught:
            TrustStore(pem, openssl)
        assert caught.value.reason == "bad_root"
