"""Secure channels between two identities: the protocol alone, without I/O and without a clock.

    initiation = Initiation.begin(parties, LIMITS)                  # at the one that opens the channel
    answer, theirs = respond(initiation.offer, parties, keys)       # at the other
    ours = initiation.finish(answer, keys)
    theirs.open(ours.seal(b"hello"))

``initiation.offer`` and ``answer`` travel in envelopes that each side signs; whoever opens an envelope passes on whose
key signed it. Everything else about the protocol, with an argument why it holds, is in
``docs/explanation/channels.md``.
"""

from tocsin.crypto.channels.handshake import Initiation, respond
from tocsin.crypto.channels.session import Session
from tocsin.crypto.channels.wire import (
    FRAME_BYTES,
    LIMITS,
    MAX_AGE_S,
    MAX_MESSAGES,
    Answer,
    Keys,
    Limits,
    Offer,
    Parties,
    channel_of,
)

__all__ = [
    "FRAME_BYTES",
    "LIMITS",
    "MAX_AGE_S",
    "MAX_MESSAGES",
    "Answer",
    "Initiation",
    "Keys",
    "Limits",
    "Offer",
    "Parties",
    "Session",
    "channel_of",
    "respond",
]
