"""The handshake: an offer, an answer, and a first frame that proves the initiator has the keys, too.

Both sides' keys are ephemeral. The initiator's are dropped when it finishes, the responder's when it has answered, so
who takes an identity's signing key later learns nothing of what was said before. (Python frees memory, it does not
overwrite it: who reads a process's memory at that time may find keys that were in use.)
"""

from __future__ import annotations

import hmac
import os
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Self

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from tocsin.contracts.errors import InvalidInputError, UntrustedError
from tocsin.crypto.channels.schedule import derive, transcript
from tocsin.crypto.channels.session import Session
from tocsin.crypto.channels.wire import DIGEST_BYTES, LIMITS, NONCE_BYTES, Answer, Keys, Limits, Offer, Parties

MIN_QKD_KEY_BYTES = 32
"""A shorter key could not stand alone if the other secrets fell."""


@dataclass(slots=True)
class Initiation:
    """A handshake that was begun here and waits for its answer."""

    offer: bytes
    qkd_required: bool
    limits: Limits
    _mlkem: MLKEM768PrivateKey = field(repr=False)
    _x25519: X25519PrivateKey = field(repr=False)
    _qkd: bytes | None = field(repr=False)

    @classmethod
    def begin(
        cls,
        parties: Parties,
        limits: Limits = LIMITS,
        *,
        qkd: tuple[bytes, bytes] | None = None,
        qkd_required: bool = False,
        nonce: bytes | None = None,
        seeds: tuple[bytes, bytes] | None = None,
    ) -> Self:
        """Make fresh keys and an offer of them. Some 130 microseconds.

        Args:
            parties: both ids.
            limits: after what the channel must be made anew.
            qkd: id (16 bytes) and value of a key that the peer's key server has, too.
            qkd_required: the peer must mix it in.
            nonce: 32 bytes; fresh ones by default.
            seeds: of the ML-KEM (64 bytes) and the X25519 key (32), for test vectors; fresh by default.

        Raises:
            InvalidInputError: ``bad_channel_limits``; ``bad_qkd_key``.
        """
        if qkd is not None:
            _check_qkd(qkd[1])
        mlkem = MLKEM768PrivateKey.from_seed_bytes(seeds[0]) if seeds else MLKEM768PrivateKey.generate()
        x25519 = X25519PrivateKey.from_private_bytes(seeds[1]) if seeds else X25519PrivateKey.generate()
        offer = Offer(
            nonce=nonce or os.urandom(NONCE_BYTES),
            parties=parties.digest(),
            limits=limits.check(),
            mlkem_public=mlkem.public_key().public_bytes_raw(),
            x25519_public=x25519.public_key().public_bytes_raw(),
            qkd_key_id=qkd[0] if qkd else None,
            qkd_required=qkd_required and qkd is not None,
        )
        return cls(offer.encode(), offer.qkd_required, limits, mlkem, x25519, qkd[1] if qkd else None)

    @property
    def offers_qkd(self) -> bool:
        """Whether the offer names a QKD key."""
        return self._qkd is not None

    @property
    def digest(self) -> bytes:
        """SHA-256 of the offer: what its answer names."""
        return sha256(self.offer).digest()

    def finish(self, answer: bytes, keys: Keys) -> Session:
        """Take the answer and return the initiator's end of the channel. Some 80 microseconds.

        Raises:
            InvalidInputError: ``bad_channel_answer``.
            UntrustedError: ``wrong_offer``: it answers another; ``qkd_not_used``: it must be;
                ``qkd_not_offered``; ``bad_confirmation``: the peer has other keys. Where a QKD key was mixed in, the
                two key servers have given different ones.
        """
        parsed = Answer.parse(answer)
        if parsed.offer_digest != self.digest:
            raise UntrustedError("the answer is to another offer", reason="wrong_offer")
        if parsed.qkd and self._qkd is None:
            raise UntrustedError("a QKD key was mixed in that was not offered", reason="qkd_not_offered")
        if self.qkd_required and not parsed.qkd:
            raise UntrustedError("the QKD key was not mixed in", reason="qkd_not_used")
        shared = self._mlkem.decapsulate(parsed.mlkem_ciphertext)
        exchanged = _exchange(self._x25519, parsed.x25519_public, reason="bad_channel_answer")
        qkd = self._qkd if parsed.qkd else None
        schedule = derive(transcript(self.offer, parsed, keys), shared, exchanged, qkd)
        if not hmac.compare_digest(schedule.confirmation, parsed.confirmation):
            raise UntrustedError("the peer has other keys", reason="bad_confirmation")
        return Session(
            schedule.channel,
            sending=schedule.to_responder,
            receiving=schedule.to_initiator,
            limits=self.limits,
            qkd=parsed.qkd,
        )


def respond(offer: bytes, parties: Parties, keys: Keys, *, qkd: bytes | None = None) -> tuple[bytes, Session]:
    """Answer an offer. Some 140 microseconds.

    Args:
        offer: as it came in an envelope that the initiator signed.
        parties: whom that envelope names as sender, and who we are.
        keys: by whose keys the two envelopes are signed.
        qkd: the key whose id the offer names, from our own key server; None to do without.

    Returns:
        the answer, and the responder's end of the channel. Only the first frame that it opens proves that the
        initiator has the keys: nothing is to be sent before.

    Raises:
        InvalidInputError: ``bad_channel_offer``, ``bad_channel_limits``, ``bad_qkd_key``.
        UntrustedError: ``wrong_parties``: it is for somebody else, or from somebody else.
    """
    parsed = Offer.parse(offer)
    if parsed.parties != parties.digest():
        raise UntrustedError("the offer is for another pair", reason="wrong_parties")
    if qkd is not None:
        _check_qkd(qkd)
        if parsed.qkd_key_id is None:
            raise InvalidInputError("no QKD key was offered", reason="bad_qkd_key")
    try:
        shared, ciphertext = MLKEM768PublicKey.from_public_bytes(parsed.mlkem_public).encapsulate()
    except ValueError as error:
        raise InvalidInputError("no ML-KEM-768 key", reason="bad_channel_offer") from error
    x25519 = X25519PrivateKey.generate()
    exchanged = _exchange(x25519, parsed.x25519_public, reason="bad_channel_offer")
    answer = Answer(
        offer_digest=sha256(offer).digest(),
        qkd=qkd is not None,
        mlkem_ciphertext=ciphertext,
        x25519_public=x25519.public_key().public_bytes_raw(),
        confirmation=bytes(DIGEST_BYTES),
    )
    schedule = derive(transcript(offer, answer, keys), shared, exchanged, qkd)
    session = Session(
        schedule.channel,
        sending=schedule.to_initiator,
        receiving=schedule.to_responder,
        limits=parsed.limits,
        qkd=qkd is not None,
    )
    return replace(answer, confirmation=schedule.confirmation).encode(), session


def _exchange(mine: X25519PrivateKey, theirs: bytes, *, reason: str) -> bytes:
    try:
        return mine.exchange(X25519PublicKey.from_public_bytes(theirs))
    except ValueError as error:  # a point of small order (RFC 7748 section 6.1)
        raise InvalidInputError("no X25519 key that gives a secret", reason=reason) from error


def _check_qkd(key: bytes) -> None:
    if len(key) < MIN_QKD_KEY_BYTES:
        raise InvalidInputError(f"a QKD key of {len(key)} bytes", reason="bad_qkd_key")
