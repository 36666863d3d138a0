"""Issue certificates: the root that is made at installation, and the intermediate that fleet holds.

The root vouches for services, hosts and agents and its key is kept offline after start-up. An intermediate
vouches for hosts and agents only and cannot make another intermediate; of what the root has certified it can
renew the time, and nothing else (:meth:`Authority.renew`). What is issued here is checked
against the same rules that every :class:`~tocsin.crypto.trust.TrustStore` holds, so an authority cannot
hand out a certificate that nobody would accept.

No clock: the caller says what time it is. A certificate begins a minute before that moment, twice the
clock error that an envelope may have (envelope.md, "live"), and never outlives its issuer.

Example:
    >>> from datetime import UTC, datetime
    >>> from tocsin.contracts.identifiers import SpiffeId
    >>> now = datetime.now(UTC)
    >>> root = Authority.create_root("tocsin.local", now=now)
    >>> fleet = root.issue_intermediate("fleet", now=now)
    >>> str(fleet.id)
    'spiffe://tocsin.local/authority/fleet'
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from tocsin.contracts.errors import DeniedError, InvalidInputError, UntrustedError
from tocsin.contracts.identifiers import NAME_PATTERN, Kind, SpiffeId
from tocsin.crypto.backends import openssl, select_backend
from tocsin.crypto.backends.openssl import PublicKey
from tocsin.crypto.certificates import (
    MAX_GENERATION,
    Certificate,
    ParsedCertificate,
    bad_certificate,
    generation_extension,
    violation,
)
from tocsin.crypto.keys import read_file, seed_from_pem, seed_to_pem, write_new_private, write_public
from tocsin.crypto.signatures import Algorithm, SignatureBackend, Signer, generate_seed, key_id

ROOT_NAME = "root"
"""The name in the root's id, ``spiffe://<domain>/authority/root``."""

BACKDATED = timedelta(minutes=1)
"""How long before its issue a certificate is valid: a peer's clock may be behind by half of it."""

_ADVICE = "run `tocsin ca init`, or say where its files are"

_Period = tuple[datetime, datetime]


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority with its private key."""

    id: SpiffeId
    certificate: ParsedCertificate
    signer: Signer = field(repr=False)
    """Signs with the authority's own key, e.g. evidence envelopes of epoch 0."""
    _seed: bytes = field(repr=False)
    _backend: SignatureBackend = field(repr=False)

    @classmethod
    def create_root(
        cls,
        domain: str,
        *,
        now: datetime,
        days: int = 3650,
        backend: SignatureBackend | None = None,
        algorithm: Algorithm = Algorithm.ML_DSA_65,
    ) -> Self:
        """Make a root for the trust domain ``domain``, valid for ``days`` from ``now``."""
        identity, seed = SpiffeId.authority(domain, ROOT_NAME), generate_seed()
        public = openssl.private_key(algorithm, seed).public_key()
        builder = _builder(public, (identity,), _period(now, timedelta(days=days)), name=_name(identity))
        builder = _as_authority(builder, path_length=1, usage=_usage(signs_certificates=True, signs=True))
        der = _sign(builder, _name(identity), algorithm, seed)
        return cls._assemble(der, algorithm, seed, backend)

    def issue_intermediate(self, name: str, *, now: datetime, days: int = 365) -> Authority:
        """Make an intermediate, with a fresh key, that may vouch for agents and hosts only.

        Raises:
            DeniedError: this authority is itself an intermediate; reason ``beyond_authority``.
        """
        if not self.is_root:
            raise DeniedError("only the root makes intermediates", reason="beyond_authority")
        identity, seed = SpiffeId.authority(self.id.domain, name), generate_seed()
        if identity == self.id:
            raise InvalidInputError(f"{ROOT_NAME!r} names the root itself", reason="bad_names")
        algorithm = self.certificate.algorithm
        period = self._within(_period(now, timedelta(days=days)))
        public = openssl.private_key(algorithm, seed).public_key()
        builder = _builder(public, (identity,), period, name=_name(identity))
        builder = _as_authority(builder, path_length=0, usage=_usage(signs_certificates=True, signs=False))
        constraint = x509.NameConstraints([x509.UniformResourceIdentifier(self.id.domain)], None)
        der = self._sign(builder.add_extension(constraint, critical=True))
        return self._assemble(der, algorithm, seed, self._backend)

    def issue(
        self,
        *,
        ids: Sequence[SpiffeId],
        public_key: bytes,
        algorithm: Algorithm,
        generation: int,
        now: datetime,
        lifetime: timedelta = timedelta(hours=24),
    ) -> Certificate:
        """Certify that ``public_key`` speaks for ``ids``; the caller has had its owner prove possession.

        Args:
            ids: 1 to 2,048 ids of this trust domain; a service or an admin agent only alone.
            public_key: the raw public key.
            algorithm: what it signs with.
            generation: 0 to 2^63 - 1; higher than before for the same id under a new key.
            now: the present, with a time zone.
            lifetime: how long from now; cut off at the end of this authority's own certificate.

        Raises:
            InvalidInputError: a rule on the names (the reasons of :func:`certificates.violation`),
                ``bad_generation`` or ``bad_period``.
            UntrustedError: reason ``bad_public_key``.
        """
        if reason := violation(ids, self.id.domain, from_root=self.is_root):
            raise InvalidInputError(f"{self.id} cannot certify these {len(ids)} ids", reason=reason)
        if not 0 <= generation <= MAX_GENERATION:
            raise InvalidInputError(f"generation {generation} is out of range", reason="bad_generation")
        period = self._within(_period(now, lifetime))
        builder = _leaf(openssl.public_key(algorithm, public_key), ids, period, generation)
        return Certificate(self._sign(builder), self.chain_der)

    def renew(
        self, original: bytes, *, now: datetime, lifetime: timedelta = timedelta(hours=24)
    ) -> Certificate:
        """Give longer life to what the root has certified: the same key, ids and generation.

        Args:
            original: DER of the certificate that the root signed; the caller has checked that it did.
            now: the present, with a time zone.
            lifetime: how long from now; cut off at the end of this authority's own certificate.

        Raises:
            DeniedError: ``beyond_authority``: this is the root, which certifies anew instead.
            InvalidInputError: ``bad_period``.
            UntrustedError: ``bad_certificate``: ``original`` is no certificate of a key for messages.
        """
        if self.is_root:
            raise DeniedError("the root certifies anew", reason="beyond_authority")
        held = ParsedCertificate.parse(original)
        if held.is_authority or held.generation is None:
            raise bad_certificate("not one that can be renewed")
        public = openssl.public_key(held.algorithm, held.public_key)
        builder = _leaf(public, held.ids(), self._within(_period(now, lifetime)), held.generation)
        return Certificate(self._sign(builder), (*self.chain_der, original))

    @property
    def is_root(self) -> bool:
        """Whether this is the root, which signs itself."""
        return self.id.name == ROOT_NAME

    @property
    def certificate_pem(self) -> bytes:
        """This authority's certificate in PEM; the root's is what a trust store starts from."""
        return self.certificate.certificate.public_bytes(Encoding.PEM)

    @property
    def chain_der(self) -> tuple[bytes, ...]:
        """What follows a leaf in its chain: this certificate's DER for an intermediate, empty for the root."""
        return () if self.is_root else (self.certificate.der,)

    def save(self, directory: Path, name: str) -> None:
        """Write ``<name>.key`` (mode 0600) and ``<name>.pem``; a key that exists is never overwritten.

        Raises:
            ConflictError: there is such a key already; reason ``file_exists``.
        """
        key_path, certificate_path = _paths(directory, name)
        write_new_private(key_path, seed_to_pem(self.certificate.algorithm, self._seed))
        write_public(certificate_path, self.certificate_pem)

    @classmethod
    def load(cls, directory: Path, name: str, *, backend: SignatureBackend | None = None) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            UnavailableError: a file is missing.
            InvalidInputError: a file is not what it should be; reason ``bad_key_file``.
        """
        key_path, certificate_path = _paths(directory, name)
        pem = read_file(certificate_path, advice=_ADVICE)
        algorithm, seed = seed_from_pem(read_file(key_path, advice=_ADVICE))
        try:
            der = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
            return cls._assemble(der, algorithm, seed, backend)
        except (ValueError, UntrustedError) as error:
            raise InvalidInputError(
                f"{certificate_path} is not the certificate of an authority in PEM", reason="bad_key_file"
            ) from error

    @classmethod
    def _assemble(cls, der: bytes, algorithm: Algorithm, seed: bytes, backend: SignatureBackend | None) -> Self:
        certificate = ParsedCertificate.parse(der)
        backend = backend or select_backend()
        signer = backend.signer(algorithm, seed)
        ids = certificate.ids()
        if len(ids) != 1 or ids[0].kind is not Kind.AUTHORITY or not certificate.is_authority:
            raise InvalidInputError("not the certificate of an authority", reason="bad_key_file")
        if (certificate.algorithm, certificate.public_key) != (algorithm, signer.public_key):
            raise InvalidInputError("the certificate is of another key", reason="bad_key_file")
        return cls(ids[0], certificate, signer, seed, backend)

    def _sign(self, builder: x509.CertificateBuilder) -> bytes:
        return _sign(builder, _name(self.id), self.certificate.algorithm, self._seed)

    def _within(self, period: _Period) -> _Period:
        """Cut ``period`` to this authority's own, so that a valid leaf means a valid chain."""
        own = self.certificate.certificate
        begin, end = max(period[0], own.not_valid_before_utc), min(period[1], own.not_valid_after_utc)
        if begin >= end:
            raise InvalidInputError(
                f"the certificate of {self.id} is valid until {own.not_valid_after_utc:%Y-%m-%d %H:%M} only",
                reason="bad_period",
                advice="make a new authority",
            )
        return begin, end


def _paths(directory: Path, name: str) -> tuple[Path, Path]:
    if not re.fullmatch(NAME_PATTERN, name):
        raise InvalidInputError(f"not a name for files: {name[:80]!r}", reason="bad_names")
    return directory / f"{name}.key", directory / f"{name}.pem"


def _period(now: datetime, lifetime: timedelta) -> _Period:
    if now.tzinfo is None or lifetime <= timedelta(0):
        raise InvalidInputError("now needs a time zone and a lifetime has to be positive", reason="bad_period")
    try:
        begin, end = now - BACKDATED, now + lifetime
    except OverflowError as error:
        raise InvalidInputError("the lifetime ends after the year 9999", reason="bad_period") from error
    return begin.replace(microsecond=0), end.replace(microsecond=0)


def _name(identity: SpiffeId) -> x509.Name:
    """Return an authority's distinguished name: its domain by RFC 2247, then its own name."""
    domain = [
        x509.NameAttribute(NameOID.DOMAIN_COMPONENT, label) for label in reversed(identity.domain.split("."))
    ]
    return x509.Name([*domain, x509.NameAttribute(NameOID.COMMON_NAME, identity.name)])


def _builder(
    public: PublicKey, ids: Sequence[SpiffeId], period: _Period, *, name: x509.Name
) -> x509.CertificateBuilder:
    """Return what all certificates share. Its SAN is critical where the subject is empty (RFC 5280)."""
    uris = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(one)) for one in ids])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(period[0])
        .not_valid_after(period[1])
        .add_extension(uris, critical=not list(name))
        .add_extension(x509.SubjectKeyIdentifier(key_id(public.public_bytes_raw())), critical=False)
    )


def _leaf(
    public: PublicKey, ids: Sequence[SpiffeId], period: _Period, generation: int
) -> x509.CertificateBuilder:
    return (
        _builder(public, ids, period, name=x509.Name([]))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False, signs=True), critical=True)
        .add_extension(generation_extension(generation), critical=False)
    )


def _as_authority(
    builder: x509.CertificateBuilder, *, path_length: int, usage: x509.KeyUsage
) -> x509.CertificateBuilder:
    constraints = x509.BasicConstraints(ca=True, path_length=path_length)
    return builder.add_extension(constraints, critical=True).add_extension(usage, critical=True)


def _usage(*, signs_certificates: bool, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=signs,
        key_cert_sign=signs_certificates,
        crl_sign=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _sign(builder: x509.CertificateBuilder, issuer: x509.Name, algorithm: Algorithm, seed: bytes) -> bytes:
    key = openssl.private_key(algorithm, seed)
    authority = x509.AuthorityKeyIdentifier(key_id(key.public_key().public_bytes_raw()), None, None)
    signed = builder.issuer_name(issuer).add_extension(authority, critical=False).sign(key, None)
    return signed.public_bytes(Encoding.DER)
