"""A certificate's bytes, as the inventory keeps it."""

from __future__ import annotations

import hashlib

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa

from tocsin.analysis.inventory.model import MAX_TEXT, Certificate
from tocsin.contracts.errors import InvalidInputError

MAX_DER_BYTES = 64 * 1024

_LATTICE = {
    "2.16.840.1.101.3.4.3.17": "ml-dsa-44",
    "2.16.840.1.101.3.4.3.18": "ml-dsa-65",
    "2.16.840.1.101.3.4.3.19": "ml-dsa-87",
}
"""NIST's object identifiers (RFC 9881 section 2)."""

_SIGNATURES = {
    "1.2.840.113549.1.1.4": "md5WithRSAEncryption",
    "1.2.840.113549.1.1.5": "sha1WithRSAEncryption",
    "1.2.840.113549.1.1.11": "sha256WithRSAEncryption",
    "1.2.840.113549.1.1.12": "sha384WithRSAEncryption",
    "1.2.840.113549.1.1.13": "sha512WithRSAEncryption",
    "1.2.840.113549.1.1.10": "rsassaPss",
    "1.2.840.10040.4.3": "dsaWithSHA1",
    "2.16.840.1.101.3.4.3.2": "dsaWithSHA256",
    "1.2.840.10045.4.1": "ecdsa-with-SHA1",
    "1.2.840.10045.4.3.2": "ecdsa-with-SHA256",
    "1.2.840.10045.4.3.3": "ecdsa-with-SHA384",
    "1.2.840.10045.4.3.4": "ecdsa-with-SHA512",
    "1.3.101.112": "ED25519",
    "1.3.101.113": "ED448",
}
"""Names as OpenSSL and Zeek spell them (RFC 3279, 4055, 5758, 8410)."""

_REFUSALS = (ValueError, TypeError, OverflowError, UnsupportedAlgorithm, x509.InvalidVersion)
"""What the library raises for damaged certificates; a TypeError for a name whose value has a wrong ASN.1 type."""


def read_certificate(der: bytes) -> Certificate:
    """Read a certificate; its signature is not checked: this is an inventory.

    Raises:
        InvalidInputError: ``bad_certificate``.
    """
    if not 0 < len(der) <= MAX_DER_BYTES:
        raise InvalidInputError(f"a certificate of {len(der)} bytes", reason="bad_certificate")
    try:
        certificate = x509.load_der_x509_certificate(der)
        kind, bits, curve = _key(certificate)
        return Certificate(
            id=hashlib.sha256(der).hexdigest(),
            subject=certificate.subject.rfc4514_string()[:MAX_TEXT],
            issuer=certificate.issuer.rfc4514_string()[:MAX_TEXT],
            not_before_s=certificate.not_valid_before_utc.timestamp(),
            not_after_s=certificate.not_valid_after_utc.timestamp(),
            key_kind=kind,
            key_bits=bits,
            curve=curve,
            signature=_signature(certificate),
        )
    except _REFUSALS as error:
        raise InvalidInputError(f"no certificate: {str(error)[:120]}", reason="bad_certificate") from error


def _key(certificate: x509.Certificate) -> tuple[str, int | None, str]:  # noqa: PLR0911 - one for each kind
    oid = certificate.public_key_algorithm_oid.dotted_string
    if oid in _LATTICE:
        return _LATTICE[oid], None, ""
    try:
        key = certificate.public_key()
    except UnsupportedAlgorithm:
        key = None
    match key:
        case rsa.RSAPublicKey():
            return "rsa", key.key_size, ""
        case dsa.DSAPublicKey():
            return "dsa", key.key_size, ""
        case ec.EllipticCurvePublicKey():
            return "ecdsa", key.key_size, key.curve.name
        case ed25519.Ed25519PublicKey():
            return "ed25519", None, "ed25519"
        case ed448.Ed448PublicKey():
            return "ed448", None, "ed448"
        case _:
            return f"oid-{oid}"[:64], None, ""


def _signature(certificate: x509.Certificate) -> str:
    oid = certificate.signature_algorithm_oid.dotted_string
    return _SIGNATURES.get(oid) or _LATTICE.get(oid) or f"oid-{oid}"[:64]
