"""Secure channels between agents: the handshake's messages, and the opening of a group's channels beforehand.

What travels inside an established channel is no message of this kind: ``docs/explanation/channels.md``.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tocsin.contracts.base import Digest, Message, Name

OFFER_BYTES = 1307
"""Of the offer's layout in :mod:`tocsin.crypto.channels.wire`."""
ANSWER_BYTES = 1187
MAX_PEERS = 1024
"""Channels that one agent is asked to open at once."""


class ChannelOffer(Message):
    """An agent offers another a channel: fresh public keys and the channel's parameters."""

    offer: Annotated[bytes, Field(min_length=OFFER_BYTES, max_length=OFFER_BYTES)]


class ChannelAnswer(Message):
    """The other's keys, and proof that it has those of the channel."""

    answer: Annotated[bytes, Field(min_length=ANSWER_BYTES, max_length=ANSWER_BYTES)]


class ChannelRefusal(Message):
    """Why an offer gets no answer."""

    offer: Digest
    """SHA-256 of the offer."""
    reason: Annotated[str, Field(pattern="^[a-z0-9_]{1,64}$")]


class ChannelUnknown(Message):
    """A frame came of a channel that its recipient does not have (any more): it is to be made anew."""

    channel: Annotated[bytes, Field(min_length=16, max_length=16)]
    counter: Annotated[int, Field(ge=0, le=2**64 - 1)]
    """Of the frame: it and what was sent after it has reached nobody."""


class Frame(Message):
    """A channel's frame as bytes; it travels by itself, not in an envelope."""

    frame: Annotated[bytes, Field(min_length=41, max_length=262_144 + 512)]


class OpenChannels(Message):
    """Ask an agent to open channels to peers, now."""

    peers: Annotated[tuple[Name, ...], Field(min_length=1, max_length=MAX_PEERS)]
    timeout_s: Annotated[float, Field(gt=0, le=25)] = 10.0
    """For each of them, in seconds."""


class OpenedChannel(Message):
    """What became of one of them."""

    peer: Name
    reason: Annotated[str, Field(pattern="^[a-z0-9_]{0,64}$")] = ""
    """Why there is none; empty where there is."""
    qkd: bool = False
    """Whether a key from a QKD link was mixed in."""


class ChannelsOpened(Message):
    """An agent's channels to the peers that it was asked for, in their order."""

    channels: Annotated[tuple[OpenedChannel, ...], Field(min_length=1, max_length=MAX_PEERS)]
