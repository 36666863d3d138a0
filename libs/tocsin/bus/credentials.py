"""A process's own keys and certificates, as files in one folder.

``ca.pem`` is the root; ``<name>.key`` a private key (mode 0600); ``<name>.chain`` its certificate chain,
msgpack array of DER, leaf first. ``tocsin init``, ``tocsin up`` and ``tocsin ca issue`` write them, services read them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import msgpack

from tocsin.bus.envelope import unpack
from tocsin.contracts.errors import InvalidInputError, UnavailableError, UntrustedError
from tocsin.contracts.identifiers import SpiffeId
from tocsin.crypto import LocalKey, SignatureBackend, TrustStore, select_backend

MAX_CHAIN_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who this process is: an id, a key, the chain that vouches for it, and the root that it trusts."""

    id: SpiffeId
    key: LocalKey
    chain: tuple[bytes, ...]
    """Empty before enrolment."""
    root_pem: bytes
    source: tuple[Path, str] | None = None
    """The folder and base name that they were read from, where they were."""

    @classmethod
    def load(cls, directory: Path, spiffe_id: SpiffeId | None, name: str, backend: SignatureBackend) -> Self:
        """Read the credentials ``name`` from a folder.

        Args:
            directory: the folder.
            spiffe_id: the id expected; None takes the only id that the certificate names.
            name: base name of the files.
            backend: signs with the key.

        Raises:
            UnavailableError: a file is missing or cannot be read.
            InvalidInputError: a file is not what it should be.
            UntrustedError: the chain does not lead to this root.
        """
        root_pem = read(directory / "ca.pem")
        key = LocalKey.load(directory / f"{name}.key", backend)
        chain = decode_chain(read(directory / f"{name}.chain"))
        identity = TrustStore(root_pem, backend).add_chain(chain)
        if identity.key_id != key.signer.key_id:
            raise InvalidInputError(
                f"{name}.chain certifies another key than {name}.key", reason="bad_key_file"
            )
        names = sorted(identity.ids)
        if spiffe_id is None:
            spiffe_id = SpiffeId.parse(names[0])
        if str(spiffe_id) not in names:
            raise InvalidInputError(
                f"{name}.chain is for {', '.join(names)[:200]}, not {spiffe_id}", reason="wrong_credentials"
            )
        return cls(spiffe_id, key, chain, root_pem, (directory, name))

    def half_over(self, *, now_ns: int) -> bool:
        """Tell whether half of the certificate's life is over."""
        identity = TrustStore(self.root_pem).add_chain(self.chain)
        return now_ns > (identity.issued_ns + identity.not_after_ns) // 2

    def require_valid(self, *, now_ns: int) -> None:
        """Check that the certificate is valid now: with another one nobody would believe this process.

        Raises:
            UntrustedError: ``certificate_expired`` or ``certificate_not_yet_valid``.
        """
        identity = TrustStore(self.root_pem).add_chain(self.chain)
        if identity.valid_at(now_ns):
            return
        ended = now_ns > identity.not_after_ns
        moment = datetime.fromtimestamp((identity.not_after_ns if ended else identity.not_before_ns) / 1e9, UTC)
        raise UntrustedError(
            f"the certificate of {self.id} {'ended' if ended else 'begins only'} at {moment:%Y-%m-%d %H:%M:%S} UTC",
            reason="certificate_expired" if ended else "certificate_not_yet_valid",
            advice="`tocsin init`, or `tocsin up`, on the installation's folder renews it"
            if ended
            else "is the clock right?",
        )

    def save(self, directory: Path, name: str) -> None:
        """Write the three files. A key that is there already is not touched: a copy may hold a lock on it."""
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = directory / f"{name}.key"
        if not key.exists() or LocalKey.load(key, select_backend()).signer.key_id != self.key.signer.key_id:
            self.key.save(key)
        fresh = directory / f".{name}.chain.new"
        fresh.write_bytes(encode_chain(self.chain))
        chain = directory / f"{name}.chain"
        if chain.exists():
            fresh.chmod(chain.stat().st_mode & 0o777)
        fresh.replace(chain)
        if not (directory / "ca.pem").exists():
            (directory / "ca.pem").write_bytes(self.root_pem)


def read(path: Path) -> bytes:
    """Read a credentials file, bounded."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CHAIN_BYTES + 1)
    except OSError as error:
        raise UnavailableError(
            f"cannot read {path.name}: {error.strerror}",
            reason="missing_file",
            advice="`tocsin init` makes an installation's credentials, `tocsin up` starts one of its own",
        ) from error
    if len(data) > MAX_CHAIN_BYTES:
        raise InvalidInputError(f"{path.name} is larger than any certificate chain", reason="bad_key_file")
    return data


def encode_chain(chain: tuple[bytes, ...]) -> bytes:
    """Return a chain's bytes, as files and the ``identities`` bucket hold them."""
    return bytes(msgpack.packb(chain))


def decode_chain(data: bytes) -> tuple[bytes, ...]:
    """Decode a chain; what it certifies is the trust store's business."""
    value = unpack(data, max_array=4)
    if type(value) is not tuple or not value or any(type(der) is not bytes for der in value):
        raise InvalidInputError("no certificate chain", reason="bad_certificate")
    return value
