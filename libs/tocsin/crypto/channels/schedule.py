"""From a handshake's secrets to the keys of both directions.

    TH  = SHA-256("tocsin/channel/1 transcript" || key id of I || key id of R || SHA-256(offer) || SHA-256(answer core))
    PRK = HKDF-Extract(salt = TH, IKM = mlkem secret || x25519 secret [|| SHA-256(QKD key)])
    OKM = HKDF-Expand(PRK, "tocsin/channel/1 keys" || TH, 136)
        = confirmation key(32) || key I to R(32) || iv I to R(12) || key R to I(32) || iv R to I(12) || channel id(16)

Extraction from a concatenation of secrets is the hybrid of NIST SP 800-56C rev. 2 section 2: the result is as good as
the best of them. Each part has 32 bytes and the offer and the answer, hence TH, say which parts there are, so no two
handshakes read the same bytes differently. HKDF is RFC 5869.
"""

from __future__ import annotations

import hmac
from hashlib import sha256
from typing import NamedTuple

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tocsin.crypto.channels.wire import CHANNEL_BYTES, Answer, Keys

KEY_BYTES = 32
IV_BYTES = 12
_TRANSCRIPT = b"tocsin/channel/1 transcript"
_KEYS = b"tocsin/channel/1 keys"
_CONFIRMATION = b"tocsin/channel/1 confirmation"
_LENGTHS = (KEY_BYTES, KEY_BYTES, IV_BYTES, KEY_BYTES, IV_BYTES, CHANNEL_BYTES)


class Directed(NamedTuple):
    """Key and initial vector of one direction."""

    key: bytes
    iv: bytes


class Schedule(NamedTuple):
    """Everything that follows from a handshake's secrets."""

    confirmation: bytes
    """What the responder proves its knowledge of the keys by."""
    to_responder: Directed
    to_initiator: Directed
    channel: bytes
    """16 bytes, which neither side can choose."""


def transcript(offer: bytes, answer: Answer, keys: Keys) -> bytes:
    """Return the hash of all that was said, and by whose keys it was signed.

    The offer holds a digest of both ids, the channel's limits and the id of the QKD key.
    """
    parts = (
        _TRANSCRIPT,
        keys.initiator,
        keys.responder,
        sha256(offer).digest(),
        sha256(answer.core()).digest(),
    )
    return sha256(b"".join(parts)).digest()


def derive(transcript_hash: bytes, mlkem: bytes, x25519: bytes, qkd: bytes | None) -> Schedule:
    """Return the keys.

    Args:
        transcript_hash: of the handshake.
        mlkem: shared secret of ML-KEM-768, 32 bytes.
        x25519: shared secret of X25519, 32 bytes.
        qkd: key from a QKD link, of any length; None where none is mixed in.
    """
    secrets = mlkem + x25519 + (b"" if qkd is None else sha256(qkd).digest())
    okm = HKDF(SHA256(), sum(_LENGTHS), transcript_hash, _KEYS + transcript_hash).derive(secrets)
    parts, at = [], 0
    for length in _LENGTHS:
        parts.append(okm[at : at + length])
        at += length
    confirming, key_out, iv_out, key_in, iv_in, channel = parts
    confirmation = hmac.digest(confirming, _CONFIRMATION + transcript_hash, "sha256")
    return Schedule(confirmation, Directed(key_out, iv_out), Directed(key_in, iv_in), channel)
