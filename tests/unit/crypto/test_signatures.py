"""Both backends keep the protocol of ``signatures`` and make and accept the same bytes."""

from __future__ import annotations

import ctypes.util
import importlib
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest

from tocsin.contracts.errors import InvalidInputError, UnavailableError, UntrustedError
from tocsin.crypto import (
    Algorithm,
    SignatureBackend,
    available_backends,
    generate_seed,
    key_id,
    select_backend,
)
from tocsin.crypto.backends import liboqs

SEED = bytes(range(32))
ALGORITHMS = pytest.mark.parametrize("algorithm", list(Algorithm), ids=lambda algorithm: algorithm.label)


@pytest.mark.parametrize("text", ["ML-DSA-65", "ml-dsa-65", "Ml-Dsa-65"])
def test_an_algorithm_is_found_by_its_name_in_any_case(text: str) -> None:
    assert Algorithm.named(text) is Algorithm.ML_DSA_65


@pytest.mark.parametrize("text", ["", "ML-DSA", "ML_DSA_65", "ed25519", "x" * 10_000])
def test_an_unknown_algorithm_is_invalid_input(text: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Algorithm.named(text)
    assert caught.value.reason == "unknown_algorithm"
    assert len(str(caught.value)) < 200


@ALGORITHMS
def test_lengths_are_those_of_the_standard(backend: SignatureBackend, algorithm: Algorithm) -> None:
    signer = backend.signer(algorithm, SEED)
    assert len(signer.public_key) == algorithm.public_key_bytes
    assert len(signer.sign(b"message", b"context")) == algorithm.signature_bytes


@ALGORITHMS
def test_a_signature_is_good_for_its_message_context_and_key_only(
    backend: SignatureBackend, algorithm: Algorithm
) -> None:
    signer = backend.signer(algorithm, SEED)
    verifier = backend.verifier(algorithm, signer.public_key)
    other = backend.verifier(algorithm, backend.signer(algorithm, bytes(32)).public_key)
    signature = signer.sign(b"message", b"context")
    assert verifier.verify(signature, b"message", b"context")
    assert not verifier.verify(signature, b"massage", b"context")
    assert not verifier.verify(signature, b"message", b"contest")
    assert not verifier.verify(signature, b"message", b"")
    assert not other.verify(signature, b"message", b"context")


@pytest.mark.parametrize("length", [0, 255])
def test_the_shortest_and_longest_contexts_work(backend: SignatureBackend, length: int) -> None:
    signer = backend.signer(Algorithm.ML_DSA_44, SEED)
    verifier = backend.verifier(Algorithm.ML_DSA_44, signer.public_key)
    assert verifier.verify(signer.sign(b"", b"c" * length), b"", b"c" * length)


def test_a_context_over_255_bytes_is_refused(backend: SignatureBackend) -> None:
    signer = backend.signer(Algorithm.ML_DSA_44, SEED)
    verifier = backend.verifier(Algorithm.ML_DSA_44, signer.public_key)
    with pytest.raises(InvalidInputError):
        signer.sign(b"message", b"c" * 256)
    assert verifier.verify(bytes(2420), b"message", b"c" * 256) is False


@pytest.mark.parametrize("length", [0, 1, 2419, 2420, 2421, 3309, 100_000])
def test_a_false_signature_of_any_length_is_false(backend: SignatureBackend, length: int) -> None:
    signer = backend.signer(Algorithm.ML_DSA_44, SEED)
    verifier = backend.verifier(Algorithm.ML_DSA_44, signer.public_key)
    assert verifier.verify(b"\xff" * length, b"message", b"context") is False


@ALGORITHMS
def test_a_malformed_public_key_is_untrusted(backend: SignatureBackend, algorithm: Algorithm) -> None:
    for length in (0, 32, algorithm.public_key_bytes - 1, algorithm.public_key_bytes + 1):
        with pytest.raises(UntrustedError) as caught:
            backend.verifier(algorithm, bytes(length))
        assert caught.value.reason == "bad_public_key"


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_seed_of_another_length_is_invalid_input(backend: SignatureBackend, length: int) -> None:
    with pytest.raises(InvalidInputError) as caught:
        backend.signer(Algorithm.ML_DSA_65, bytes(length))
    assert caught.value.reason == "bad_seed"


def test_a_key_id_is_the_hash_of_the_raw_public_key(backend: SignatureBackend) -> None:
    signer = backend.signer(Algorithm.ML_DSA_65, SEED)
    verifier = backend.verifier(Algorithm.ML_DSA_65, signer.public_key)
    assert signer.key_id == verifier.key_id == key_id(signer.public_key)
    assert signer.key_id == sha256(signer.public_key).digest()


def test_seeds_are_fresh() -> None:
    seeds = {generate_seed() for _ in range(100)}
    assert len(seeds) == 100
    assert {len(seed) for seed in seeds} == {32}


@ALGORITHMS
def test_one_seed_gives_every_backend_the_same_key(backend: SignatureBackend, algorithm: Algorithm) -> None:
    """With liboqs: its expanded key is derived from the seed, and OpenSSL accepts what it signs."""
    reference = select_backend("openssl")
    ours, theirs = backend.signer(algorithm, SEED), reference.signer(algorithm, SEED)
    assert ours.public_key == theirs.public_key
    for signer, judge in ((ours, reference), (theirs, backend)):
        signature = signer.sign(b"message", b"context")
        assert judge.verifier(algorithm, ours.public_key).verify(signature, b"message", b"context")
        assert not judge.verifier(algorithm, ours.public_key).verify(signature, b"message", b"contest")


def test_keys_derived_while_others_sign_are_right(backend: SignatureBackend) -> None:
    """The liboqs backend swaps the random generator to derive a key: nobody else may draw the seed."""
    signer = backend.signer(Algorithm.ML_DSA_44, SEED)
    verifier = backend.verifier(Algorithm.ML_DSA_44, signer.public_key)

    def derive(number: int) -> bytes:
        return backend.signer(Algorithm.ML_DSA_44, bytes([number]) * 32).public_key

    with ThreadPoolExecutor(4) as pool:
        signatures = [pool.submit(signer.sign, b"same", b"context") for _ in range(24)]
        derived = list(pool.map(derive, range(24)))
        made = {future.result() for future in signatures}
    reference = select_backend("openssl")
    assert derived == [
        reference.signer(Algorithm.ML_DSA_44, bytes([number]) * 32).public_key for number in range(24)
    ]
    assert len(made) == 24, "hedged signatures (FIPS 204 section 3.4) differ even for one message"
    assert all(verifier.verify(signature, b"same", b"context") for signature in made)


def test_counters_count_what_was_done_in_full(backend: SignatureBackend) -> None:
    signer = backend.signer(Algorithm.ML_DSA_44, SEED)
    verifier = backend.verifier(Algorithm.ML_DSA_44, signer.public_key)
    signatures, verifications = backend.counters.signatures, backend.counters.verifications
    signature = signer.sign(b"message", b"")
    verifier.verify(signature, b"message", b"")
    verifier.verify(signature, b"another", b"")
    verifier.verify(b"short", b"message", b"")
    assert backend.counters.signatures - signatures == 1
    assert backend.counters.verifications - verifications == 2


def test_openssl_is_always_there_and_auto_is_the_first_available() -> None:
    backends = available_backends()
    assert backends[-1].name == "openssl"
    assert select_backend() is select_backend("auto") is backends[0]


def test_an_unknown_backend_is_invalid_input() -> None:
    with pytest.raises(InvalidInputError) as caught:
        select_backend("bouncycastle")
    assert caught.value.reason == "unknown_backend"


def test_liboqs_is_not_imported_where_its_library_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Importing ``oqs`` without the library downloads and builds one: we must have refused before."""
    imported: list[str] = []
    monkeypatch.setenv("OQS_INSTALL_PATH", str(tmp_path))
    monkeypatch.setattr(ctypes.util, "find_library", lambda _name: None)
    monkeypatch.setattr(importlib, "import_module", imported.append)
    with pytest.raises(UnavailableError) as caught:
        liboqs.LiboqsBackend()
    assert caught.value.reason == "no_liboqs"
    assert "OQS_INSTALL_PATH" in (caught.value.advice() or "")
    assert imported == []


def test_a_file_that_is_no_library_counts_as_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "liboqs.so").write_bytes(b"not a library")
    monkeypatch.setenv("OQS_INSTALL_PATH", str(tmp_path))
    monkeypatch.setattr(ctypes.util, "find_library", lambda _name: None)
    assert liboqs.find_library() is None
