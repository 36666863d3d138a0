"""The certificate authority of an installation, and the credentials that it gives to services.

``<folder>/root.pem`` and ``root.key`` are the root; ``fleet.pem`` and ``fleet.key`` the intermediate that may
issue to agents and hosts only. The root's key is needed to certify services and to sign epoch 0, and can be
kept elsewhere afterwards.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from tocsin.bus import Credentials
from tocsin.contracts.errors import ConflictError, UnavailableError
from tocsin.contracts.identifiers import ServiceName, SpiffeId
from tocsin.crypto import Authority, LocalKey, SignatureBackend, select_backend

ROOT = "root"
FLEET = "fleet"
SERVICE_LIFETIME = timedelta(days=30)
"""Of a service's certificate: it is issued anew at each start of the embedded stack."""
GENERATION = 1


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
    """Return the root of a folder, made on first use.

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
    return root


def issue_service(
    root: Authority,
    service: ServiceName,
    instance: str,
    folder: Path,
    *,
    backend: SignatureBackend | None = None,
) -> Credentials:
    """Certify one instance of a service into ``folder``; its key is made once and then kept."""
    backend = backend or select_backend()
    name = f"{service.value}-{instance}"
    key_path = folder / f"{name}.key"
    key = LocalKey.load(key_path, backend) if key_path.exists() else LocalKey.generate(backend)
    spiffe_id = SpiffeId.service(root.id.domain, service, instance)
    certificate = root.issue(
        ids=[spiffe_id],
        public_key=key.signer.public_key,
        algorithm=key.algorithm,
        generation=GENERATION,
        now=datetime.now(UTC),
        lifetime=SERVICE_LIFETIME,
    )
    credentials = Credentials(spiffe_id, key, certificate.chain_der, root.certificate_pem)
    credentials.save(folder, name)
    return credentials
