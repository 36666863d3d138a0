"""Any bytes give an identity or our error, and no change of a certificate's bytes is believed."""

from __future__ import annotations

import functools
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tocsin.contracts.errors import InvalidInputError, UntrustedError
from tocsin.contracts.identifiers import Role, SpiffeId
from tocsin.crypto import Algorithm, Authority, LocalKey, TrustStore, select_backend

NOW = datetime(2026, 5, 4, tzinfo=UTC)
DOMAIN = "tocsin.test"


@functools.cache
def _world() -> tuple[Authority, Authority, tuple[LocalKey, ...]]:
    backend = select_backend("openssl")
    root = Authority.create_root(DOMAIN, now=NOW, backend=backend, algorithm=Algorithm.ML_DSA_44)
    keys = tuple(LocalKey.generate(backend, Algorithm.ML_DSA_44) for _ in range(3))
    return root, root.issue_intermediate("fleet", now=NOW), keys


@functools.cache
def _chain(key: int, names: frozenset[int], generation: int) -> tuple[bytes, ...]:
    _, fleet, keys = _world()
    return fleet.issue(
        ids=[SpiffeId.agent(DOMAIN, Role.ANALYST, f"analyst-{name}") for name in sorted(names)],
        public_key=keys[key].signer.public_key,
        algorithm=keys[key].algorithm,
        generation=generation,
        now=NOW,
    ).chain_der


def _store() -> TrustStore:
    return TrustStore(_world()[0].certificate_pem, select_backend("openssl"))


@given(st.lists(st.binary(max_size=300), max_size=4))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_refused_with_our_error(chain: list[bytes]) -> None:
    with pytest.raises(UntrustedError):
        _store().add_chain(chain)


@given(which=st.integers(0, 1), place=st.integers(0, 2**16), value=st.integers(1, 255), cut=st.booleans())
@settings(max_examples=400, deadline=None)
def test_a_changed_certificate_is_refused_with_our_error(
    which: int, place: int, value: int, *, cut: bool
) -> None:
    """Flips go all over the structure, so every part of the parser meets damaged input."""
    chain = list(_chain(0, frozenset({0, 1}), 1))
    place %= len(chain[which])
    damaged = bytearray(chain[which])
    damaged[place] ^= value
    chain[which] = bytes(damaged[:place]) if cut else bytes(damaged)
    with pytest.raises(UntrustedError):
        _store().add_chain(chain)


@given(
    st.binary(max_size=300) | st.binary(max_size=100).map(lambda raw: b"-----BEGIN CERTIFICATE-----\n" + raw)
)
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_no_root(pem: bytes) -> None:
    with pytest.raises(InvalidInputError):
        TrustStore(pem, select_backend("openssl"))


additions = st.tuples(
    st.integers(0, 2), st.frozensets(st.integers(0, 3), min_size=1, max_size=3), st.integers(1, 4)
)


@given(st.lists(additions, max_size=12))
@settings(max_examples=80, deadline=None)
def test_generations_never_go_back(history: list[tuple[int, frozenset[int], int]]) -> None:
    """After any history: an id's keys are its newest generation's, or of exactly one generation before."""
    store = _store()
    newest: dict[str, int] = {}
    for key, names, generation in history:
        ids = {f"spiffe://{DOMAIN}/agent/analyst/analyst-{name}" for name in names}
        stale = any(generation < newest.get(one, 0) for one in ids)
        if stale:
            with pytest.raises(UntrustedError, match="superseded"):
                store.add_chain(_chain(key, names, generation))
            continue
        try:
            identity = store.add_chain(_chain(key, names, generation))
        except UntrustedError:  # a second key in one generation
            continue
        for one in ids & identity.ids:
            newest[one] = max(identity.generation, newest.get(one, 0))
        held = [found for local in _world()[2] if (found := store.identity(local.signer.key_id))]
        assert len(held) == len(store)
        for name, generation_now in newest.items():
            speakers = [candidate for candidate in held if candidate.names(name)]
            assert len(speakers) <= 2
            assert all(candidate.generation >= generation_now - 1 for candidate in speakers)
