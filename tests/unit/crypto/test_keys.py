"""Key files are private from their first byte, and are read back or refused with our errors."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from tocsin.contracts.errors import InvalidInputError, UnavailableError
from tocsin.crypto import Algorithm, LocalKey, SignatureBackend
from tocsin.crypto.backends.openssl import private_key


def test_a_saved_key_is_read_back(tmp_path: Path, backend: SignatureBackend) -> None:
    for algorithm in Algorithm:
        key = LocalKey.generate(backend, algorithm)
        key.save(tmp_path / "agent.key")
        loaded = LocalKey.load(tmp_path / "agent.key", backend)
        assert (loaded.algorithm, loaded.seed) == (algorithm, key.seed)
        assert loaded.signer.public_key == key.signer.public_key


def test_a_key_file_is_never_readable_by_others(
    tmp_path: Path, openssl: SignatureBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mode is looked at before any byte is in it, with a umask that hides nothing."""
    modes: list[int] = []
    really_open = os.fdopen

    def watched(descriptor: int, mode: str) -> object:
        modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        return really_open(descriptor, mode)

    monkeypatch.setattr(os, "fdopen", watched)
    before = os.umask(0)
    try:
        LocalKey.generate(openssl, Algorithm.ML_DSA_44).save(tmp_path / "fresh" / "agent.key")
    finally:
        os.umask(before)
    assert modes == [0o600]
    assert stat.S_IMODE((tmp_path / "fresh" / "agent.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "fresh").stat().st_mode) == 0o700


def test_saving_replaces_a_key_and_leaves_nothing_else(tmp_path: Path, openssl: SignatureBackend) -> None:
    path = tmp_path / "agent.key"
    path.write_text("readable by all")
    path.chmod(0o644)
    key = LocalKey.generate(openssl, Algorithm.ML_DSA_44)
    key.save(path)
    assert LocalKey.load(path, openssl).seed == key.seed
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_key_that_cannot_be_written_is_unavailable(tmp_path: Path, openssl: SignatureBackend) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnavailableError) as caught:
        LocalKey.generate(openssl, Algorithm.ML_DSA_44).save(tmp_path / "file" / "agent.key")
    assert caught.value.reason == "unwritable_file"


def test_the_seed_is_in_no_repr(openssl: SignatureBackend) -> None:
    key = LocalKey.generate(openssl, Algorithm.ML_DSA_44)
    assert repr(key.seed) not in repr(key)
    assert key.seed.hex() not in repr(key)


def test_a_missing_key_is_unavailable(tmp_path: Path, openssl: SignatureBackend) -> None:
    with pytest.raises(UnavailableError) as caught:
        LocalKey.load(tmp_path / "none.key", openssl)
    assert caught.value.reason == "missing_file"
    assert caught.value.advice()


def test_a_folder_is_not_a_key(tmp_path: Path, openssl: SignatureBackend) -> None:
    with pytest.raises(UnavailableError) as caught:
        LocalKey.load(tmp_path, openssl)
    assert caught.value.reason == "unreadable_file"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xff\x00 not PEM", id="no PEM"),
        pytest.param(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", id="no PKCS 8"),
        pytest.param(
            Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            id="another algorithm",
        ),
        pytest.param(
            private_key(Algorithm.ML_DSA_44, bytes(32)).private_bytes(
                Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
            ),
            id="encrypted",
        ),
        pytest.param(b"x" * 1_000_000, id="huge"),
    ],
)
def test_what_is_no_key_is_invalid_input(tmp_path: Path, openssl: SignatureBackend, content: bytes) -> None:
    (tmp_path / "bad.key").write_bytes(content)
    with pytest.raises(InvalidInputError) as caught:
        LocalKey.load(tmp_path / "bad.key", openssl)
    assert caught.value.reason == "bad_key_file"
