"""Keep private keys in files that nobody else can read, not even for an instant.

A key file is PKCS #8 in PEM, unencrypted, holding the 32-byte seed (RFC 9881), so ``openssl pkey`` reads
it. It is written to a fresh file created with mode 0600 in the same folder, synced, and then given its
name in one step: a crash leaves the old key or the new one.

Does not protect against: who can read files as this user or as root, and backups of the folder.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from tocsin.contracts.errors import ConflictError, InvalidInputError, UnavailableError
from tocsin.crypto.backends.openssl import private_algorithm, private_key
from tocsin.crypto.sealing import SealingKey
from tocsin.crypto.signatures import Algorithm, SignatureBackend, Signer, generate_seed

MAX_KEY_FILE_BYTES = 64 * 1024
"""More than any key or certificate that this system writes without names; a larger file is not read."""


@dataclass(frozen=True, slots=True)
class LocalKey:
    """A process's own key pair. The seed appears in no repr."""

    algorithm: Algorithm
    seed: bytes = field(repr=False)
    signer: Signer = field(repr=False, compare=False)

    @classmethod
    def generate(cls, backend: SignatureBackend, algorithm: Algorithm = Algorithm.ML_DSA_65) -> Self:
        """Make a fresh key pair."""
        seed = generate_seed()
        return cls(algorithm, seed, backend.signer(algorithm, seed))

    @classmethod
    def load(cls, path: Path, backend: SignatureBackend) -> Self:
        """Read a key that :meth:`save` wrote.

        Raises:
            UnavailableError: the file is missing or cannot be read.
            InvalidInputError: it holds no ML-DSA private key; reason ``bad_key_file``.
        """
        algorithm, seed = seed_from_pem(read_file(path, advice="make the key, or enrol again"))
        return cls(algorithm, seed, backend.signer(algorithm, seed))

    def save(self, path: Path) -> None:
        """Write the key to ``path`` with mode 0600, replacing what was there in one step."""
        with _fresh_private_file(path, seed_to_pem(self.algorithm, self.seed)) as fresh:
            fresh.replace(path)


def seed_to_pem(algorithm: Algorithm, seed: bytes) -> bytes:
    """Return the seed as unencrypted PKCS #8 in PEM."""
    return private_key(algorithm, seed).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def seed_from_pem(pem: bytes) -> tuple[Algorithm, bytes]:
    """Return algorithm and seed of a PEM private key; anything else raises InvalidInputError."""
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidInputError(
            "not an unencrypted private key in PEM that holds its seed", reason="bad_key_file"
        ) from error
    algorithm = private_algorithm(key)
    return algorithm, key.private_bytes_raw()  # type: ignore[union-attr]  # private_algorithm checked the kind


def load_sealing_key(path: Path) -> SealingKey:
    """Read a key that :func:`save_sealing_key` wrote.

    Raises:
        UnavailableError: the file is missing or cannot be read.
        InvalidInputError: it holds no seed of 32 bytes in hexadecimal; reason ``bad_key_file``.
    """
    text = read_file(path, advice="restart the host, which makes one")
    try:
        return SealingKey.from_seed(bytes.fromhex(text.decode("ascii")))
    except (ValueError, InvalidInputError) as error:
        raise InvalidInputError(f"{path.name} holds no sealing key", reason="bad_key_file") from error


def save_sealing_key(path: Path, key: SealingKey) -> None:
    """Write a sealing key's seed in hexadecimal, mode 0600, to a new file.

    Raises:
        ConflictError: ``file_exists``.
    """
    write_new_private(path, f"{key.seed.hex()}\n".encode())


def read_file(path: Path, *, advice: str) -> bytes:
    """Read a key or certificate file of bounded size."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_KEY_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise UnavailableError(f"{path} does not exist", reason="missing_file", advice=advice) from error
    except OSError as error:
        raise UnavailableError(f"cannot read {path}: {error.strerror}", reason="unreadable_file") from error
    if len(content) > MAX_KEY_FILE_BYTES:
        raise InvalidInputError(f"{path} is larger than {MAX_KEY_FILE_BYTES} bytes", reason="bad_key_file")
    return content


def write_new_private(path: Path, content: bytes) -> None:
    """Write ``content`` to a new file with mode 0600; one that exists is left alone.

    Raises:
        ConflictError: ``path`` exists; reason ``file_exists``.
    """
    with _fresh_private_file(path, content) as fresh:
        try:
            os.link(fresh, path)  # unlike a rename, it fails where the name is taken
        except FileExistsError as error:
            raise ConflictError(
                f"{path} exists and is not overwritten",
                reason="file_exists",
                advice="move the old file away first",
            ) from error


def write_public(path: Path, content: bytes) -> None:
    """Write ``content`` for everyone to read, replacing what was there in one step."""
    with _fresh_private_file(path, content) as fresh:
        fresh.chmod(0o644)
        fresh.replace(path)


def replace_private(path: Path, content: bytes) -> None:
    """Write ``content`` for its owner alone to read, replacing what was there in one step."""
    with _fresh_private_file(path, content) as fresh:
        fresh.replace(path)


@contextmanager
def _fresh_private_file(path: Path, content: bytes) -> Iterator[Path]:
    """Write ``content``, synced, to a new 0600 file beside ``path``; remove it if it was not renamed."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            yield fresh
        finally:
            fresh.unlink(missing_ok=True)
    except OSError as error:
        raise UnavailableError(f"cannot write {path}: {error.strerror}", reason="unwritable_file") from error
