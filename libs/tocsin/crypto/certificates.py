"""Read and write the certificates of this system: X.509 with ML-DSA keys and signatures (RFC 9881).

Profile. One leaf carries one public key and 1 to 2,048 SPIFFE-style ids as URI SANs (a host may carry a
thousand agents), an empty subject, a critical key usage of digitalSignature, and its generation in a
private non-critical extension. An intermediate has path length 0 and a name constraint to its trust
domain. The subject key identifier is the key id: SHA-256 of the raw public key.

This module knows the form. Who may vouch for whom is :func:`violation`, held by the authority when it
issues and by :class:`~tocsin.crypto.trust.TrustStore`, which is the party that enforces it: standard X.509
has no constraint on the path of a URI.
"""

from __future__ import annotations

import calendar
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID

from tocsin.contracts.errors import TocsinError, UntrustedError
from tocsin.contracts.identifiers import Kind, Role, SpiffeId
from tocsin.crypto.backends.openssl import public_algorithm
from tocsin.crypto.signatures import Algorithm, key_id

MAX_NAMES = 2048
"""Most ids in one certificate: twice the thousand agents that a host may carry."""

MAX_CERTIFICATE_BYTES = 256 * 1024
"""Largest DER that is parsed: 2,048 ids of 100 bytes and an ML-DSA-87 key and signature fit."""

MAX_GENERATION = 2**63 - 1
"""Highest generation: what a signed 64-bit integer holds in any language."""

GENERATION_OID = x509.ObjectIdentifier("2.25.93538643106611927458063401148983964831")
"""A UUID-based OID (ITU-T X.667 section 7), made for this
extension from UUID 465ee32a-c9a2-4b30-85a0-3f7f04d2749f. Its value is a DER INTEGER."""

_COMMON_EXTENSIONS = {
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
}


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate that an authority has just issued, with what a peer needs to check it."""

    der: bytes
    authorities: tuple[bytes, ...]
    """DER of the intermediate, without the root; behind it the root's own certificate that a renewal renews."""

    @property
    def chain_der(self) -> tuple[bytes, ...]:
        """Leaf, then what vouches for it, without the root: what :meth:`TrustStore.add_chain` takes."""
        return (self.der, *self.authorities)

    @property
    def certificate_pem(self) -> bytes:
        """The leaf in PEM."""
        return x509.load_der_x509_certificate(self.der).public_bytes(Encoding.PEM)


@dataclass(frozen=True, slots=True)
class ParsedCertificate:
    """The fields of a well-formed certificate. Nothing about it has been verified yet."""

    der: bytes
    certificate: x509.Certificate
    algorithm: Algorithm
    public_key: bytes
    key_id: bytes
    uris: tuple[str, ...]
    not_before_ns: int
    not_after_ns: int
    generation: int | None
    is_authority: bool
    path_length: int | None
    constrained_to: str | None
    usage: x509.KeyUsage

    @classmethod
    def parse(cls, der: bytes) -> ParsedCertificate:
        """Parse DER: any bytes give a certificate or UntrustedError, reason ``bad_certificate``."""
        if len(der) > MAX_CERTIFICATE_BYTES:
            raise bad_certificate(f"{len(der)} bytes, over {MAX_CERTIFICATE_BYTES}")
        try:
            return cls._read(der)
        except TocsinError:
            raise
        except Exception as error:  # the parser's exceptions are many and not all documented
            raise bad_certificate(f"malformed ({type(error).__name__})") from error

    @classmethod
    def _read(cls, der: bytes) -> ParsedCertificate:
        certificate = x509.load_der_x509_certificate(der)
        if certificate.version is not x509.Version.v3:
            raise bad_certificate("not X.509 version 3")
        public = certificate.public_key()
        algorithm = public_algorithm(public)
        raw: bytes = public.public_bytes_raw()  # type: ignore[union-attr]  # public_algorithm checked the kind
        extensions = certificate.extensions
        basic = extensions.get_extension_for_class(x509.BasicConstraints).value
        _refuse_unknown_critical(extensions, is_authority=basic.ca)
        return cls(
            der=der,
            certificate=certificate,
            algorithm=algorithm,
            public_key=raw,
            key_id=key_id(raw),
            uris=_read_uris(extensions),
            not_before_ns=to_ns(certificate.not_valid_before_utc),
            not_after_ns=to_ns(certificate.not_valid_after_utc),
            generation=_read_generation(extensions),
            is_authority=basic.ca,
            path_length=basic.path_length,
            constrained_to=_read_constraint(extensions),
            usage=extensions.get_extension_for_class(x509.KeyUsage).value,
        )

    def is_signed_by(self, issuer: ParsedCertificate) -> bool:
        """Tell whether the issuer's name and signature are ``issuer``'s: a full verification."""
        try:
            self.certificate.verify_directly_issued_by(issuer.certificate)
        except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
            return False
        return True

    def ids(self) -> tuple[SpiffeId, ...]:
        """Parse the ids; one that is none raises UntrustedError, reason ``bad_certificate``."""
        try:
            return tuple(map(SpiffeId.parse, self.uris))
        except TocsinError as error:
            raise bad_certificate(str(error)) from error


def bad_certificate(why: str) -> UntrustedError:
    """Return the error for a certificate that breaks the profile."""
    return UntrustedError(f"certificate refused: {why}", reason="bad_certificate")


def to_ns(moment: datetime) -> int:
    """Return a UTC moment in nanoseconds since the epoch; certificates have whole seconds."""
    return calendar.timegm(moment.utctimetuple()) * 1_000_000_000


def violation(ids: Sequence[SpiffeId], domain: str, *, from_root: bool) -> str | None:
    """Return the reason code of the rule that these ids break on one leaf certificate, or None.

    * ``bad_names``: none, more than 2,048, or one twice.
    * ``wrong_domain``: an id of another trust domain.
    * ``beyond_authority``: an authority's id on a leaf; from an intermediate, anything but agents and hosts,
      unless it only renews what the root has certified (:func:`renews`).
    * ``shared_key``: a service or an admin agent that is not alone on its key (envelope.md, "Identity").
    """
    if not 1 <= len(ids) <= MAX_NAMES or len(set(ids)) != len(ids):
        return "bad_names"
    if any(one.domain != domain for one in ids):
        return "wrong_domain"
    vouchable = {Kind.AGENT, Kind.HOST, Kind.SERVICE} if from_root else {Kind.AGENT, Kind.HOST}
    if any(one.kind not in vouchable for one in ids):
        return "beyond_authority"
    if len(ids) > 1 and any(one.kind is Kind.SERVICE or one.role is Role.ADMIN for one in ids):
        return "shared_key"
    return None


def renews(renewed: ParsedCertificate, original: ParsedCertificate) -> bool:
    """Tell whether a certificate says what an earlier one says, only for another time.

    This is all that an intermediate can do for a service: give longer life to what the root has certified. The key,
    the ids and the generation are the same, and it begins no earlier.
    """
    same_key = (renewed.key_id, renewed.algorithm) == (original.key_id, original.algorithm)
    same_names = frozenset(renewed.uris) == frozenset(original.uris)
    in_order = original.not_before_ns <= renewed.not_before_ns
    return same_key and same_names and renewed.generation == original.generation and in_order


def generation_extension(generation: int) -> x509.UnrecognizedExtension:
    """Return the extension that carries ``generation``, 0 to 2^63 - 1, as a DER INTEGER."""
    value = generation.to_bytes(generation.bit_length() // 8 + 1, "big")
    return x509.UnrecognizedExtension(GENERATION_OID, bytes((0x02, len(value))) + value)


def _read_generation(extensions: x509.Extensions) -> int | None:
    try:
        extension = extensions.get_extension_for_oid(GENERATION_OID).value
    except x509.ExtensionNotFound:
        return None
    if not isinstance(extension, x509.UnrecognizedExtension) or len(extension.value) > 10:
        raise bad_certificate("malformed generation")
    generation = int.from_bytes(extension.value[2:], "big")
    if generation > MAX_GENERATION or generation_extension(generation) != extension:
        raise bad_certificate("malformed generation")
    return generation


def _read_uris(extensions: x509.Extensions) -> tuple[str, ...]:
    names = list(extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    uris = tuple(name.value for name in names if isinstance(name, x509.UniformResourceIdentifier))
    if not uris or len(uris) != len(names):
        raise bad_certificate("its alternative names are not all URIs")
    return uris


def _read_constraint(extensions: x509.Extensions) -> str | None:
    """Return the one domain that URIs are constrained to; a constraint of another form is refused."""
    try:
        constraint = extensions.get_extension_for_class(x509.NameConstraints).value
    except x509.ExtensionNotFound:
        return None
    permitted = constraint.permitted_subtrees or []
    if constraint.excluded_subtrees or len(permitted) != 1:
        raise bad_certificate("its name constraint is not one permitted domain")
    if not isinstance(permitted[0], x509.UniformResourceIdentifier):
        raise bad_certificate("its name constraint is not about URIs")
    return permitted[0].value


def _refuse_unknown_critical(extensions: x509.Extensions, *, is_authority: bool) -> None:
    """RFC 5280 section 4.2: a critical extension that is not understood refuses the certificate."""
    known = _COMMON_EXTENSIONS | ({ExtensionOID.NAME_CONSTRAINTS} if is_authority else set())
    for extension in extensions:
        if extension.critical and extension.oid not in known:
            raise bad_certificate(f"unknown critical extension {extension.oid.dotted_string}")
