"""Keys and authorities that are made once: a key pair costs a millisecond, a root two."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from tocsin.contracts.errors import UnavailableError
from tocsin.contracts.identifiers import Role, SpiffeId
from tocsin.crypto import (
    Algorithm,
    Authority,
    LocalKey,
    SignatureBackend,
    TrustStore,
    select_backend,
)

NOW = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
DOMAIN = "tocsin.test"

Issue = Callable[..., tuple[bytes, ...]]


@pytest.fixture(scope="session", params=["openssl", "liboqs"])
def backend(request: pytest.FixtureRequest) -> SignatureBackend:
    """Each backend of this machine: one suite, two implementations."""
    try:
        return select_backend(request.param)
    except UnavailableError as error:
        pytest.skip(f"NOT TESTED on this machine: {error}; {error.advice()}")


@pytest.fixture(scope="session")
def openssl() -> SignatureBackend:
    return select_backend("openssl")


@pytest.fixture(scope="session")
def now() -> datetime:
    return NOW


@pytest.fixture(scope="session")
def root(openssl: SignatureBackend) -> Authority:
    return Authority.create_root(DOMAIN, now=NOW, backend=openssl, algorithm=Algorithm.ML_DSA_44)


@pytest.fixture(scope="session")
def fleet(root: Authority) -> Authority:
    return root.issue_intermediate("fleet", now=NOW)


@pytest.fixture(scope="session")
def keys(openssl: SignatureBackend) -> list[LocalKey]:
    """Four key pairs."""
    return [LocalKey.generate(openssl, Algorithm.ML_DSA_44) for _ in range(4)]


@pytest.fixture
def store(root: Authority, openssl: SignatureBackend) -> TrustStore:
    return TrustStore(root.certificate_pem, openssl)


@pytest.fixture(scope="session")
def agents() -> list[SpiffeId]:
    return [SpiffeId.agent(DOMAIN, Role.HUNTER, f"hunter-{number}") for number in range(4)]


@pytest.fixture(scope="session")
def issue(fleet: Authority, keys: list[LocalKey]) -> Issue:
    """Issue a chain: ``issue(key number, ids, generation, issuer=..., lifetime=...)``."""

    def make(
        key: int,
        ids: list[SpiffeId],
        generation: int = 1,
        *,
        issuer: Authority = fleet,
        now: datetime = NOW,
        lifetime: timedelta = timedelta(hours=24),
    ) -> tuple[bytes, ...]:
        return issuer.issue(
            ids=ids,
            public_key=keys[key].signer.public_key,
            algorithm=keys[key].algorithm,
            generation=generation,
            now=now,
            lifetime=lifetime,
        ).chain_der

    return make
