"""What an agent has in hand when it has a channel.

    channel = await agent.channel("hunter-02")
    await channel.send(b"...")

The channel outlives its keys: they are made anew when they are due, when the peer has restarted, or when a bound was
reached, and whoever sends does not notice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tocsin.contracts.base import Message
from tocsin.contracts.errors import ConflictError
from tocsin.contracts.identifiers import SpiffeId

if TYPE_CHECKING:
    from tocsin.agent.channels.desk import ChannelDesk


@dataclass(frozen=True, slots=True)
class ChannelStats:
    """Figures of what two agents have said in their channel, since it was first used or last evicted."""

    established: bool
    """Whether there are keys now."""
    qkd: bool
    """Whether a key from a QKD link was mixed into them."""
    age_s: float
    """Of the keys."""
    handshakes: int
    """How often keys were made."""
    sent: int
    received: int
    lost: int
    """Frames of the peer's that did not arrive, as far as later ones tell."""
    resent: int
    """Messages sent again after the peer had lost its keys."""


class Channel:
    """A secure channel to one peer. Get it by :meth:`tocsin.agent.Agent.channel`."""

    __slots__ = ("_closed", "_desk", "peer")

    def __init__(self, desk: ChannelDesk, peer: SpiffeId) -> None:
        self._desk = desk
        self._closed = False
        self.peer = peer

    async def send(self, data: bytes | Message, *, timeout_s: float = 10.0) -> None:
        """Send bytes, or one of the messages that agents send one another, sealed to the peer alone.

        It returns when the frame is on its way; as on the bus itself, that it arrives is not confirmed. It waits only
        where keys have to be made first.

        Raises:
            ConflictError: ``channel_closed``.
            InvalidInputError: ``too_large``: more than 256 KiB; ``bad_body``: no such message.
            DeniedError: the policy allows us no such message; ``barred``: the peer is kept out.
            UnavailableError: ``no_answer``: keys had to be made, and the peer did not answer, or nothing that counts:
                its key may be revoked. Or the QKD server's reason.
            ExhaustedError: the broker is away and the client's buffer is full.
        """
        if self._closed:
            raise ConflictError(f"the channel to {self.peer.name} was closed", reason="channel_closed")
        await self._desk.send(self.peer, data, timeout_s=timeout_s)

    async def close(self) -> None:
        """Erase the keys, and tell the peer, which erases its own. Whoever sends again makes new ones."""
        if not self._closed:
            self._closed = True
            await self._desk.close(self.peer)

    @property
    def qkd(self) -> bool:
        """Whether a key from a QKD link is mixed into the present keys."""
        return self.stats.qkd

    @property
    def stats(self) -> ChannelStats:
        """Figures now."""
        return self._desk.stats(self.peer)
