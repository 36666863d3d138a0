"""One end of an established channel: frames out, frames in, under keys that each have one direction.

The nonce is the direction's initial vector with the frame's counter added by exclusive or (as RFC 8446 section 5.3
does), so none repeats under a key. The frame's header is associated data. A counter that is not above the last one
that was opened is refused: no frame is opened twice, none out of order. A gap is allowed and counted, since the bus
may lose messages.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tocsin.contracts.errors import ExhaustedError, InvalidInputError, UntrustedError
from tocsin.crypto.channels.schedule import Directed
from tocsin.crypto.channels.wire import FRAME_BYTES, HEADER, VERSION, Limits


class Session:
    """Seals and opens. It has no clock: who uses it asks no more of it after ``limits.age_s``."""

    __slots__ = (
        "_last",
        "_receiving",
        "_receiving_iv",
        "_sending",
        "_sending_iv",
        "channel",
        "limits",
        "lost",
        "qkd",
        "received",
        "sent",
    )

    def __init__(
        self, channel: bytes, *, sending: Directed, receiving: Directed, limits: Limits, qkd: bool
    ) -> None:
        self.channel = channel
        self.limits = limits
        self.qkd = qkd
        """Whether a QKD key was mixed in."""
        self.sent = 0
        """Frames sealed: the next one's counter."""
        self.received = 0
        """Frames opened."""
        self.lost = 0
        """Counters that were passed over."""
        self._last = -1
        self._sending = AESGCM(sending.key)
        self._sending_iv = int.from_bytes(sending.iv, "big")
        self._receiving = AESGCM(receiving.key)
        self._receiving_iv = int.from_bytes(receiving.iv, "big")

    def seal(self, plaintext: bytes) -> bytes:
        """Return the next frame. Some 2 microseconds for 400 bytes.

        Raises:
            ExhaustedError: ``channel_spent``: these keys have sealed all that they may.
        """
        counter = self.sent
        if counter >= self.limits.messages:
            raise ExhaustedError(f"{counter} frames under one key", reason="channel_spent")
        self.sent = counter + 1
        header = HEADER.pack(VERSION, self.channel, counter)
        return header + self._sending.encrypt(
            (self._sending_iv ^ counter).to_bytes(12, "big"), plaintext, header
        )

    def open(self, frame: bytes) -> bytes:
        """Return what a frame carries. A refused frame changes nothing here.

        Raises:
            InvalidInputError: ``bad_frame``.
            UntrustedError: ``unknown_channel``: it is not of this channel; ``replayed_frame``: opened before, or
                behind one that was; ``bad_frame_tag``: it is not what the peer sealed.
            ExhaustedError: ``channel_spent``.
        """
        if len(frame) < FRAME_BYTES:
            raise InvalidInputError(f"no frame: {len(frame)} bytes", reason="bad_frame")
        header = frame[: HEADER.size]
        version, channel, counter = HEADER.unpack(header)
        if version != VERSION:
            raise InvalidInputError(f"a frame of version {version}", reason="bad_frame")
        if channel != self.channel:
            raise UntrustedError("a frame of another channel", reason="unknown_channel")
        if counter <= self._last:
            raise UntrustedError("a frame that comes again, or late", reason="replayed_frame")
        if counter >= self.limits.messages:
            raise ExhaustedError("a frame beyond the key's last", reason="channel_spent")
        try:
            plaintext = self._receiving.decrypt(
                (self._receiving_iv ^ counter).to_bytes(12, "big"), frame[HEADER.size :], header
            )
        except InvalidTag as error:
            raise UntrustedError("a frame that the peer did not seal", reason="bad_frame_tag") from error
        self.lost += counter - self._last - 1
        self._last = counter
        self.received += 1
        return plaintext

    @property
    def spent(self) -> bool:
        """Whether the next frame would be one too many."""
        return self.sent >= self.limits.messages
