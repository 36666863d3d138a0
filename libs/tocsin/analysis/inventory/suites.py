"""Cipher suites by name: how keys are agreed upon, who is authenticated how, cipher and hash.

The names are IANA's ("TLS Cipher Suites"), which Zeek writes too. Strengths and categories as in
:mod:`tocsin.analysis.inventory.algorithms`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from tocsin.analysis.inventory.algorithms import UNKNOWN, Algorithm, Primitive

_AES_CATEGORIES = {128: 1, 192: 3, 256: 5}
_HASHES = {
    "MD5": (0, 0),
    "SHA": (63, 0),
    "SHA256": (128, 2),
    "SHA384": (192, 4),
    "SHA512": (256, None),
    "SHA224": (112, None),
}
"""Strength against collisions, category. MD5 and SHA-1 are broken classically; a collision of SHA-1 took 2^63.1
(Stevens, Bursztein, Karpman, Albertini and Markov, CRYPTO 2017)."""


@dataclass(frozen=True, slots=True)
class Suite:
    """What a cipher suite's name says."""

    exchange: str
    """``RSA``, ``DH``, ``DHE``, ``ECDH``, ``ECDHE``, ``PSK``, ``ANY`` (TLS 1.3: the group decides) or ``unknown``."""
    authentication: str
    """``RSA``, ``ECDSA``, ``DSS``, ``PSK``, ``anon``; empty where the suite does not say."""
    cipher: Algorithm
    digest: Algorithm
    export: bool = False
    """Weakened on purpose, for the export rules of the 1990s."""


_TLS13_SUITE = re.compile(r"TLS_((?:AES|CHACHA20|SM4|AEGIS)_[A-Z0-9_]+)_(SHA256|SHA384|SHA512|SM3)")
_OLD_SUITE = re.compile(r"(?:TLS|SSL)_([A-Za-z0-9_]+?)_WITH_([A-Z0-9_]+)")
_EXCHANGES = {
    "RSA": ("RSA", "RSA"),
    "DH_RSA": ("DH", "RSA"),
    "DH_DSS": ("DH", "DSS"),
    "DHE_RSA": ("DHE", "RSA"),
    "DHE_DSS": ("DHE", "DSS"),
    "DH_ANON": ("DHE", "anon"),
    "ECDH_RSA": ("ECDH", "RSA"),
    "ECDH_ECDSA": ("ECDH", "ECDSA"),
    "ECDHE_RSA": ("ECDHE", "RSA"),
    "ECDHE_ECDSA": ("ECDHE", "ECDSA"),
    "ECDH_ANON": ("ECDHE", "anon"),
    "PSK": ("PSK", "PSK"),
    "DHE_PSK": ("DHE", "PSK"),
    "ECDHE_PSK": ("ECDHE", "PSK"),
    "RSA_PSK": ("RSA", "PSK"),
}


@lru_cache(maxsize=1024)
def suite(name: str) -> Suite:
    """Read a cipher suite's IANA name; what is not known is ``unknown``, never guessed."""
    modern = _TLS13_SUITE.fullmatch(name)
    if modern:
        return Suite("ANY", "", _cipher(modern[1]), digest(modern[2]))
    old = _OLD_SUITE.fullmatch(name)
    if not old:
        return Suite("unknown", "", UNKNOWN, UNKNOWN)
    exchange = old[1].upper()
    export = exchange.endswith("_EXPORT") or "_EXPORT_" in exchange or "_EXPORT1024" in exchange
    how, who = _EXCHANGES.get(re.sub(r"_EXPORT(1024)?$", "", exchange), ("unknown", ""))
    cipher, _, hashed = old[2].rpartition("_")
    if hashed not in _HASHES:  # CCM suites name no hash: theirs is SHA-256 (RFC 6655 section 3)
        cipher, hashed = old[2], "SHA256"
    return Suite(how, who, _cipher(cipher), digest(hashed), export)


@lru_cache(maxsize=64)
def digest(name: str) -> Algorithm:
    """Classify a hash by its name in a cipher suite, e.g. ``SHA384``."""
    if name not in _HASHES:
        return UNKNOWN
    strength, category = _HASHES[name]
    shown = {"MD5": "MD5", "SHA": "SHA-1"}.get(name, f"SHA-{name[3:]}")
    return Algorithm(shown, Primitive.HASH, name[3:], "", strength, category)


_OBSOLETE = {
    "NULL": Algorithm("NULL", Primitive.UNKNOWN, strength=0, category=0),
    "3DES": Algorithm("3DES-CBC", Primitive.BLOCK_CIPHER, "168", "", 112, 0),
    "RC4": Algorithm("RC4", Primitive.STREAM_CIPHER, category=0),
    "RC2": Algorithm("RC2", Primitive.BLOCK_CIPHER, category=0),
    "DES": Algorithm("DES", Primitive.BLOCK_CIPHER, "56", "", 56, 0),
    "DES40": Algorithm("DES40", Primitive.BLOCK_CIPHER, "40", "", 40, 0),
}
"""Ciphers by the first word of their name, broken without a quantum computer."""


def _cipher(name: str) -> Algorithm:
    if name == "CHACHA20_POLY1305":
        return Algorithm("ChaCha20-Poly1305", Primitive.AUTHENTICATED_CIPHER, "256", "", 256)
    block = re.fullmatch(r"(AES|CAMELLIA|ARIA)_(128|192|256)_(CBC|GCM|CCM|CCM_8)", name)
    if block:
        bits = int(block[2])
        kind = Primitive.BLOCK_CIPHER if block[3] == "CBC" else Primitive.AUTHENTICATED_CIPHER
        label = f"{block[1]}-{bits}-{block[3].replace('_', '-')}"
        # The categories are defined by AES; of the others nobody has rated them.
        category = _AES_CATEGORIES[bits] if block[1] == "AES" else None
        return Algorithm(label, kind, str(bits), "", bits, category)
    return _OBSOLETE.get(name.partition("_")[0], UNKNOWN)
