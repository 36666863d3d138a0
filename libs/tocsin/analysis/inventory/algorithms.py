"""What each algorithm is worth, against classical machines and against quantum ones.

* Shor's algorithm breaks RSA, finite-field and elliptic-curve Diffie-Hellman, (EC)DSA and EdDSA in polynomial
  time, whatever the key size (P. W. Shor, SIAM J. Comput. 26(5), 1997).
* Grover's search at best halves the exponent of a key search, and hardly parallelises (C. Zalka, Phys. Rev. A
  60, 1999). NIST takes AES-128 as the yardstick of its security category 1: it counts as resistant here.
* Hashes: collisions of SHA-256 are the yardstick of category 2, of SHA-384 of category 4.

Classical strengths: NIST SP 800-57 part 1 rev. 5, table 2. Categories: NIST, Call for Proposals for the
Post-Quantum Cryptography Standardization Process (2016), section 4.A.5; of ML-KEM FIPS 203 section 8, of ML-DSA
FIPS 204 section 4.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from tocsin.analysis.inventory.codes import GROUPS


class Primitive(StrEnum):
    """What an algorithm does; the values are CycloneDX's."""

    KEM = "kem"
    KEY_AGREEMENT = "key-agree"
    ENCRYPTION = "pke"
    SIGNATURE = "signature"
    AUTHENTICATED_CIPHER = "ae"
    BLOCK_CIPHER = "block-cipher"
    STREAM_CIPHER = "stream-cipher"
    HASH = "hash"
    COMBINER = "combiner"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, order=True)
class Algorithm:
    """One algorithm with its parameters."""

    name: str
    primitive: Primitive
    parameters: str = ""
    """Key size or parameter set, e.g. ``2048`` or ``768``."""
    curve: str = ""
    strength: int | None = None
    """Classical security strength in bits; None: not known."""
    category: int | None = None
    """NIST's post-quantum security category; 0: broken by Shor's algorithm or classically; None: not rated."""
    shor: bool = False
    """Whether Shor's algorithm breaks it."""


UNKNOWN = Algorithm("unknown", Primitive.UNKNOWN)

_CURVES = {
    "secp192r1": 192,
    "secp224r1": 224,
    "secp256k1": 256,
    "secp256r1": 256,
    "secp384r1": 384,
    "secp521r1": 521,
    "brainpoolP256r1": 256,
    "brainpoolP384r1": 384,
    "brainpoolP512r1": 512,
    "x25519": 255,
    "x448": 448,
    "ed25519": 255,
    "ed448": 448,
}
"""Size of the field in bits."""
_CURVE_NAMES = {
    **{name.lower(): name for name in _CURVES},
    "prime192v1": "secp192r1",
    "prime256v1": "secp256r1",
    "p-256": "secp256r1",
    "p-384": "secp384r1",
    "p-521": "secp521r1",
}
_GROUP_NAMES = {name.lower(): name for name in GROUPS.values()}
_KEM_CATEGORIES = {512: 1, 768: 3, 1024: 5}
_DSA_CATEGORIES = {44: 2, 65: 3, 87: 5}
_FF_STRENGTHS = ((15_360, 256), (7_680, 192), (3_072, 128), (2_048, 112), (1_024, 80))


def finite_field_strength(bits: int) -> int:
    """Return the strength of a modulus of RSA or Diffie-Hellman; 0 below 1,024 bits."""
    return next((strength for least, strength in _FF_STRENGTHS if bits >= least), 0)


def curve_bits(curve: str) -> int | None:
    """Return the size of a curve's field in bits."""
    return _CURVES.get(_CURVE_NAMES.get(curve.lower(), ""))


def _curve_strength(bits: int) -> int:
    return {255: 128, 448: 224, 521: 256}.get(bits, bits // 2)


@lru_cache(maxsize=1024)
def group(name: str) -> Algorithm:
    """Classify a key-exchange group by its name, as TLS, Zeek or the probe spell it."""
    known = _GROUP_NAMES.get(_numbered(name).lower(), _CURVE_NAMES.get(name.lower(), name))
    kem = re.fullmatch(r"(?:(X25519|SecP256r1|SecP384r1))?(MLKEM|Kyber)(512|768|1024)(Draft00)?", known)
    if kem:
        size = int(kem[3])
        # Drafts are not FIPS 203, yet the same lattice problem protects what was recorded.
        kind = Primitive.COMBINER if kem[1] else Primitive.KEM
        return Algorithm(known, kind, str(size), category=None if kem[4] else _KEM_CATEGORIES[size])
    bits = curve_bits(known)
    if bits is not None:
        return Algorithm(
            f"ECDH-{known}", Primitive.KEY_AGREEMENT, str(bits), known, _curve_strength(bits), 0, shor=True
        )
    modulus = re.fullmatch(r"(?:ffdhe|ffdh-)(\d{1,5})", known)
    if modulus:
        size = int(modulus[1])
        return Algorithm(
            f"FFDH-{size}", Primitive.KEY_AGREEMENT, str(size), "", finite_field_strength(size), 0, shor=True
        )
    return UNKNOWN


def _numbered(name: str) -> str:
    """Return the name of ``unknown-<code>``: what an older Zeek did not know may be known here."""
    code = re.fullmatch(r"unknown-(\d{1,5})", name)
    return GROUPS.get(int(code[1]), name) if code else name


@lru_cache(maxsize=4096)
def public_key(kind: str, bits: int | None = None, curve: str = "") -> Algorithm:
    """Classify the public key of a certificate.

    Args:
        kind: ``rsa``, ``dsa``, ``ecdsa``, ``ed25519``, ``ed448``, ``ml-dsa-65`` and the like.
        bits: Size of the key in bits, where it is known.
        curve: Name of the curve, of elliptic keys.
    """
    name = kind.lower()
    lattice = re.fullmatch(r"(?:id-)?ml-?dsa-?(44|65|87)", name)
    if lattice:
        size = int(lattice[1])
        return Algorithm(f"ML-DSA-{size}", Primitive.SIGNATURE, str(size), category=_DSA_CATEGORIES[size])
    if re.fullmatch(r"(?:id-)?slh-?dsa-[a-z0-9-]{1,40}", name):
        return Algorithm(name.removeprefix("id-").upper(), Primitive.SIGNATURE)
    if name in {"rsa", "dsa"}:
        size_name = str(bits) if bits else ""
        strength = finite_field_strength(bits) if bits else None
        label = f"{name.upper()}-{size_name}" if size_name else name.upper()
        return Algorithm(label, Primitive.SIGNATURE, size_name, "", strength, 0, shor=True)
    field = curve_bits(name) or curve_bits(curve) or bits
    if name in {"ed25519", "ed448"}:
        strength = _curve_strength(_CURVES[name])
        return Algorithm(name.capitalize(), Primitive.SIGNATURE, str(field), name, strength, 0, shor=True)
    if name in {"ecdsa", "ec"}:
        known = _CURVE_NAMES.get(curve.lower(), curve)
        strength = _curve_strength(field) if field else None
        label = f"ECDSA-{known or field}" if known or field else "ECDSA"
        return Algorithm(label, Primitive.SIGNATURE, str(field or ""), known, strength, 0, shor=True)
    return UNKNOWN


@lru_cache(maxsize=1024)
def signature_hash(name: str) -> str:
    """Return the hash of a certificate's signature algorithm, in the spelling of cipher suites; empty: not known."""
    found = re.search(r"md5|sha-?(?:1|224|256|384|512)", name.lower())
    if not found:
        return ""
    digits = found[0].removeprefix("sha").lstrip("-")
    return {"md5": "MD5", "1": "SHA"}.get(digits, f"SHA{digits}")


_SHOR_SIGNATURES = re.compile(r"rsa|dsa|ed25519|ed448", re.IGNORECASE)


@lru_cache(maxsize=1024)
def signature(name: str) -> Algorithm:
    """Classify a certificate's signature by the name of its algorithm; the signer's key size is not in it."""
    resistant = public_key(name)
    if resistant.primitive is not Primitive.UNKNOWN and not resistant.shor:
        return resistant
    if not _SHOR_SIGNATURES.search(name):
        return UNKNOWN
    return Algorithm(name, Primitive.SIGNATURE, category=0, shor=True)
