"""The certificate authority of an installation, and the credentials that it gives to services.

``<folder>/root.pem`` and ``root.key`` are the root; ``fleet.pem`` and ``fleet.key`` the intermediate that may
issue to agents and hosts only. The root's key is needed to certify services, to sign who decides and to revoke
keys, and can be kept elsewhere meanwhile.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tocsin.bus import Credentials, Sent
from tocsin.bus.credentials import decode_chain, read
from tocsin.bus.envelope import encode_body, encode_content, encode_envelope, make_content
from tocsin.contracts.base import Message
from tocsin.contracts.errors import ConflictError, UnavailableError
from tocsin.contracts.identifiers import ServiceName, SpiffeId
from tocsin.contracts.subjects import MessageType
from tocsin.crypto import Authority, LocalKey, SignatureBackend, leaf_hash, select_backend, sign_batch
from tocsin.crypto.certificates import ParsedCertificate

ROOT = "root"
FLEET = "fleet"
SERVICE_LIFETIME = timedelta(days=30)
"""Of a service's certificate: it is issued anew at each start of the embedded stack."""
FIRST_GENERATION = 1


def create(folder: Path, domain: str) -> Authority:
    """Make a root and fleet's intermediate.

    Raises:
        ConflictError: ``file_exists``: there is an authority already.
        InvalidInputError: the domain is none.
        UnavailableError: ``not_writable``: the folder cannot be made.
    """
    if (folder / f"{ROOT}.pem").exists():
        raise ConflictError(f"{folder} holds an authority already", reason="file_exists")
    now = datetime.now(UTC)
    root = Authority.create_root(domain, now=now)
    make_private_folder(folder)
    root.save(folder, ROOT)
    root.issue_intermediate(FLEET, now=now).save(folder, FLEET)
    return root


def make_private_folder(folder: Path) -> None:
    """Make a folder that its owner alone may enter, unless it is there.

    Raises:
        UnavailableError: ``not_writable``.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise UnavailableError(
            f"cannot make the folder {folder}: {error.strerror}",
            reason="not_writable",
            advice="choose another",
        ) from error


def open_or_create(folder: Path, domain: str) -> Authority:
    """Return the root of a folder, made on first use. An intermediate that is missing is made anew.

    Raises:
        ConflictError: ``other_domain``: the folder's authority is for another trust domain.
    """
    try:
        root = Authority.load(folder, ROOT)
    except UnavailableError:
        return create(folder, domain)
    if root.id.domain != domain:
        raise ConflictError(
            f"the authority in {folder} is for {root.id.domain}, not {domain}",
            reason="other_domain",
            advice="choose another state folder",
        )
    if not (folder / f"{FLEET}.pem").exists():
        # It was revoked and taken away.
        root.issue_intermediate(FLEET, now=datetime.now(UTC)).save(folder, FLEET)
    return root


def issue_service(
    root: Authority,
    service: ServiceName,
    instance: str,
    folder: Path,
    *,
    backend: SignatureBackend | None = None,
) -> Credentials:
    """Certify one instance of a service into ``folder``; its key is made once and then kept.

    Where its key was taken away, a new one is made, whose generation is above that of the chain that is still there.
    """
    backend = backend or select_backend()
    name = f"{service.value}-{instance}"
    key_path = folder / f"{name}.key"
    key = LocalKey.load(key_path, backend) if key_path.exists() else LocalKey.generate(backend)
    spiffe_id = SpiffeId.service(root.id.domain, service, instance)
    certificate = root.issue(
        ids=[spiffe_id],
        public_key=key.signer.public_key,
        algorithm=key.algorithm,
        generation=_generation(folder / f"{name}.chain", key),
        now=datetime.now(UTC),
        lifetime=SERVICE_LIFETIME,
    )
    credentials = Credentials(spiffe_id, key, certificate.chain_der, root.certificate_pem)
    credentials.save(folder, name)
    return credentials


def sign_as_root(root: Authority, kind: MessageType[Message], body: Message, *, audience: str) -> Sent:
    """Make an envelope of class evidence with the root's key: the only messages that no process of the bus signs."""
    content = make_content(
        type_name=kind.name,
        sender=str(root.id),
        audience=audience,
        body=encode_body(body),
        now_ns=time.time_ns(),
        ttl_ms=0,
    )
    signed = encode_content(content)
    proof = sign_batch(root.signer, [signed])[0]
    data = encode_envelope(signed, root.signer.key_id, proof)
    return Sent(content.id, leaf_hash(signed), data, content.issued_at)


def _generation(chain: Path, key: LocalKey) -> int:
    """Return the generation of a key: one above that of another key which the chain certifies."""
    if not chain.exists():
        return FIRST_GENERATION
    held = ParsedCertificate.parse(decode_chain(read(chain))[0])
    generation = held.generation or FIRST_GENERATION
    return generation if held.key_id == key.signer.key_id else generation + 1
