"""An authority issues what a trust store accepts, refuses the rest, and keeps its key private."""

from __future__ import annotations

import stat
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from tocsin.contracts.errors import (
    ConflictError,
    DeniedError,
    InvalidInputError,
    UnavailableError,
    UntrustedError,
)
from tocsin.contracts.identifiers import Role, ServiceName, SpiffeId
from tocsin.crypto import (
    Algorithm,
    Authority,
    LocalKey,
    SignatureBackend,
    TrustStore,
)

DOMAIN = "tocsin.test"
HUNTER = SpiffeId.agent(DOMAIN, Role.HUNTER, "hunter-1")
ROUTER = SpiffeId.service(DOMAIN, ServiceName.ROUTER, "router-1")
HOST = SpiffeId.host(DOMAIN, "host-1")
ADMIN = SpiffeId.agent(DOMAIN, Role.ADMIN, "admin-1")


def test_the_root_names_itself(root: Authority, fleet: Authority) -> None:
    assert str(root.id) == f"spiffe://{DOMAIN}/authority/root"
    assert str(fleet.id) == f"spiffe://{DOMAIN}/authority/fleet"
    assert root.is_root
    assert not fleet.is_root
    assert root.chain_der == ()
    assert fleet.chain_der == (fleet.certificate.der,)


@pytest.mark.parametrize("domain", ["", "Upper.Case", "a..b", "x" * 600, "under_score"])
def test_a_root_needs_a_domain(domain: str, now: datetime, openssl: SignatureBackend) -> None:
    with pytest.raises(InvalidInputError):
        Authority.create_root(domain, now=now, backend=openssl)


def test_a_leaf_is_as_the_profile_says(fleet: Authority, keys: list[LocalKey], now: datetime) -> None:
    issued = fleet.issue(
        ids=[HOST, HUNTER],
        public_key=keys[0].signer.public_key,
        algorithm=keys[0].algorithm,
        generation=7,
        now=now,
    )
    leaf = x509.load_pem_x509_certificate(issued.certificate_pem)
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert issued.chain_der == (issued.der, fleet.certificate.der)
    assert [name.value for name in names.value] == [str(HOST), str(HUNTER)]
    assert list(leaf.subject) == []
    assert names.critical, "RFC 5280 section 4.2.1.6: critical where the subject is empty"
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    assert {extension.oid for extension in leaf.extensions if extension.critical} == {
        ExtensionOID.KEY_USAGE,
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    }
    assert leaf.not_valid_before_utc == now - timedelta(minutes=1)
    assert leaf.not_valid_after_utc == now + timedelta(hours=24)


def test_an_intermediate_is_constrained(fleet: Authority) -> None:
    extensions = fleet.certificate.certificate.extensions
    assert extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    constraints = extensions.get_extension_for_class(x509.NameConstraints)
    assert constraints.critical
    assert constraints.value.permitted_subtrees == [x509.UniformResourceIdentifier(DOMAIN)]


def test_an_intermediate_makes_no_intermediate(fleet: Authority, now: datetime) -> None:
    with pytest.raises(DeniedError) as caught:
        fleet.issue_intermediate("another", now=now)
    assert caught.value.reason == "beyond_authority"


@pytest.mark.parametrize("name", ["root", "", "Fleet", "a/b"])
def test_an_intermediate_has_a_name_of_its_own(root: Authority, now: datetime, name: str) -> None:
    with pytest.raises(InvalidInputError):
        root.issue_intermediate(name, now=now)


@pytest.mark.parametrize(
    ("ids", "by_root", "reason"),
    [
        pytest.param([], True, "bad_names", id="nobody"),
        pytest.param([HUNTER, HUNTER], True, "bad_names", id="one twice"),
        pytest.param([replace(HUNTER, domain="evil.test")], True, "wrong_domain", id="other domain"),
        pytest.param([ROUTER], False, "beyond_authority", id="service by fleet"),
        pytest.param([SpiffeId.authority(DOMAIN, "x")], True, "beyond_authority", id="authority as leaf"),
        pytest.param([ROUTER, HOST], True, "shared_key", id="service shares a key"),
        pytest.param([HOST, ADMIN], False, "shared_key", id="admin shares a key"),
    ],
)
def test_names_that_it_may_not_certify(
    root: Authority,
    fleet: Authority,
    keys: list[LocalKey],
    now: datetime,
    *,
    ids: list[SpiffeId],
    reason: str,
    by_root: bool,
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        (root if by_root else fleet).issue(
            ids=ids,
            public_key=keys[0].signer.public_key,
            algorithm=keys[0].algorithm,
            generation=1,
            now=now,
        )
    assert caught.value.reason == reason


def test_a_key_of_another_algorithm_is_refused(fleet: Authority, keys: list[LocalKey], now: datetime) -> None:
    with pytest.raises(UntrustedError) as caught:
        fleet.issue(
            ids=[HUNTER],
            public_key=keys[0].signer.public_key,
            algorithm=Algorithm.ML_DSA_87,
            generation=1,
            now=now,
        )
    assert caught.value.reason == "bad_public_key"


@pytest.mark.parametrize("generation", [-1, 2**63])
def test_a_generation_is_64_bits(
    fleet: Authority, keys: list[LocalKey], now: datetime, generation: int
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        fleet.issue(
            ids=[HUNTER],
            public_key=keys[0].signer.public_key,
            algorithm=keys[0].algorithm,
            generation=generation,
            now=now,
        )
    assert caught.value.reason == "bad_generation"


@pytest.mark.parametrize(
    ("moment", "lifetime"),
    [
        pytest.param(datetime(2026, 5, 4), timedelta(hours=1), id="no time zone"),  # noqa: DTZ001
        pytest.param(datetime(2026, 5, 4, 4, tzinfo=UTC), timedelta(0), id="no lifetime"),
        pytest.param(datetime(2026, 5, 4, 4, tzinfo=UTC), timedelta(days=9_999_999), id="past 9999"),
        pytest.param(datetime(2046, 5, 4, 4, tzinfo=UTC), timedelta(hours=1), id="issuer expired"),
        pytest.param(datetime(2006, 5, 4, 4, tzinfo=UTC), timedelta(hours=1), id="issuer not yet valid"),
    ],
)
def test_a_period_that_cannot_be(
    fleet: Authority, keys: list[LocalKey], moment: datetime, lifetime: timedelta
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        fleet.issue(
            ids=[HUNTER],
            public_key=keys[0].signer.public_key,
            algorithm=keys[0].algorithm,
            generation=1,
            now=moment,
            lifetime=lifetime,
        )
    assert caught.value.reason == "bad_period"


def test_a_leaf_never_outlives_its_issuer(
    root: Authority, keys: list[LocalKey], now: datetime, openssl: SignatureBackend
) -> None:
    brief = root.issue_intermediate("brief", now=now, days=1)
    chain = brief.issue(
        ids=[HUNTER],
        public_key=keys[0].signer.public_key,
        algorithm=keys[0].algorithm,
        generation=1,
        now=now + timedelta(hours=20, microseconds=123_456),
    ).chain_der
    identity = TrustStore(root.certificate_pem, openssl).add_chain(chain)
    assert identity.not_after_ns == brief.certificate.not_after_ns


@pytest.mark.parametrize("algorithm", list(Algorithm), ids=lambda algorithm: algorithm.label)
def test_every_algorithm_makes_a_root_that_works(
    algorithm: Algorithm, now: datetime, backend: SignatureBackend
) -> None:
    root = Authority.create_root(DOMAIN, now=now, backend=backend, algorithm=algorithm)
    key = LocalKey.generate(backend, algorithm)
    chain = (
        root.issue_intermediate("fleet", now=now)
        .issue(ids=[HUNTER], public_key=key.signer.public_key, algorithm=algorithm, generation=1, now=now)
        .chain_der
    )
    identity = TrustStore(root.certificate_pem, backend).add_chain(chain)
    signature = key.signer.sign(b"message", b"context")
    assert identity.algorithm is algorithm
    assert identity.verifier.verify(signature, b"message", b"context")


def test_a_saved_authority_is_read_back_and_goes_on_issuing(
    tmp_path: Path, root: Authority, keys: list[LocalKey], now: datetime, openssl: SignatureBackend
) -> None:
    root.issue_intermediate("fleet", now=now).save(tmp_path / "ca", "fleet")
    loaded = Authority.load(tmp_path / "ca", "fleet", backend=openssl)
    issued = loaded.issue(
        ids=[HUNTER],
        public_key=keys[0].signer.public_key,
        algorithm=keys[0].algorithm,
        generation=1,
        now=now,
    )
    store = TrustStore(root.certificate_pem, openssl)
    assert store.add_chain(issued.chain_der).names(str(HUNTER))
    assert stat.S_IMODE((tmp_path / "ca" / "fleet.key").stat().st_mode) == 0o600
    assert sorted(path.name for path in (tmp_path / "ca").iterdir()) == ["fleet.key", "fleet.pem"]


def test_the_signer_signs_with_the_root_key(
    root: Authority, store: TrustStore, openssl: SignatureBackend
) -> None:
    signature = root.signer.sign(b"epoch 0", b"evidence")
    assert store.root.key_id == root.signer.key_id
    assert store.root.names(str(root.id))
    assert store.root.verifier.verify(signature, b"epoch 0", b"evidence")
    assert openssl.verifier(root.signer.algorithm, root.signer.public_key).verify(
        signature, b"epoch 0", b"evidence"
    )


def test_a_saved_key_is_never_overwritten(tmp_path: Path, root: Authority, fleet: Authority) -> None:
    root.save(tmp_path, "root")
    before = (tmp_path / "root.key").read_bytes(), (tmp_path / "root.pem").read_bytes()
    with pytest.raises(ConflictError) as caught:
        fleet.save(tmp_path, "root")
    assert caught.value.reason == "file_exists"
    assert before == ((tmp_path / "root.key").read_bytes(), (tmp_path / "root.pem").read_bytes())


def test_a_missing_authority_says_how_to_make_one(tmp_path: Path, root: Authority) -> None:
    with pytest.raises(UnavailableError) as caught:
        Authority.load(tmp_path, "root")
    assert "tocsin ca init" in (caught.value.advice() or "")
    root.save(tmp_path, "root")
    (tmp_path / "root.key").unlink()
    with pytest.raises(UnavailableError):
        Authority.load(tmp_path, "root")


def test_files_that_are_not_an_authoritys(
    tmp_path: Path, root: Authority, fleet: Authority, keys: list[LocalKey], now: datetime
) -> None:
    root.save(tmp_path, "root")
    leaf = root.issue(
        ids=[ROUTER],
        public_key=root.signer.public_key,
        algorithm=root.signer.algorithm,
        generation=1,
        now=now,
    )
    for content in (b"", b"no PEM", fleet.certificate_pem, leaf.certificate_pem):
        (tmp_path / "root.pem").write_bytes(content)
        with pytest.raises(InvalidInputError) as caught:
            Authority.load(tmp_path, "root")
        assert caught.value.reason == "bad_key_file"
    (tmp_path / "root.pem").write_bytes(root.certificate_pem)
    keys[0].save(tmp_path / "root.key")
    with pytest.raises(InvalidInputError):
        Authority.load(tmp_path, "root")


@pytest.mark.parametrize("name", ["", "../root", "a/b", "Root"])
def test_a_file_name_stays_in_its_folder(tmp_path: Path, root: Authority, name: str) -> None:
    with pytest.raises(InvalidInputError):
        root.save(tmp_path, name)
    with pytest.raises(InvalidInputError):
        Authority.load(tmp_path, name)


def test_private_keys_are_in_no_repr(root: Authority) -> None:
    assert "seed" not in repr(root)
