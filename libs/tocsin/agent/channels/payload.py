"""What a frame carries: bytes, a message, or a word about the channel itself.

payload = kind(1) data:   0 ready (no data), 1 bytes, 2 message, 3 closed (no data)
message = length of the type's name(1) name body(msgpack map of the model)
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from tocsin.bus.envelope import decode_body, encode_body
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import ROUTED
from tocsin.contracts.errors import InvalidInputError, TocsinError
from tocsin.contracts.subjects import KIB, MessageType

MAX_DATA_BYTES = 256 * KIB
"""Of bytes, or of a message's body."""
BY_NAME = {kind.name: kind for kind in ROUTED}
"""Messages that travel in channels: those that agents say to one another."""
BY_MODEL = {kind.model: kind for kind in ROUTED}


class Kind(IntEnum):
    """What a payload is."""

    READY = 0
    """The sender has the channel's keys and will use them from now on."""
    BYTES = 1
    MESSAGE = 2
    CLOSED = 3
    """The sender has dropped the keys."""


class Payload(NamedTuple):
    """A payload, read."""

    kind: Kind
    data: bytes | Message = b""
    message_type: MessageType[Message] | None = None


READY = bytes((Kind.READY,))
CLOSED = bytes((Kind.CLOSED,))
_BYTES = bytes((Kind.BYTES,))


def encode(data: bytes | Message) -> bytes:
    """Return a payload.

    Raises:
        InvalidInputError: ``too_large``; ``bad_body``: a model that agents do not send one another.
    """
    if isinstance(data, bytes | bytearray | memoryview):
        return _sized(bytes(data), _BYTES)
    kind = BY_MODEL.get(type(data))
    if kind is None:
        raise InvalidInputError(f"{type(data).__name__} does not travel in channels", reason="bad_body")
    name = kind.name.encode()
    return _sized(encode_body(data), bytes((Kind.MESSAGE, len(name))) + name)


def _sized(data: bytes, head: bytes) -> bytes:
    if len(data) > MAX_DATA_BYTES:
        raise InvalidInputError(f"{len(data)} bytes, at most {MAX_DATA_BYTES}", reason="too_large")
    return head + data


def decode(payload: bytes) -> Payload:
    """Read a payload that was opened.

    Raises:
        InvalidInputError: ``bad_payload``; ``bad_body``: the message does not validate.
    """
    try:
        kind = Kind(payload[0])
    except (IndexError, ValueError) as error:
        raise InvalidInputError("a payload of a kind that is not known", reason="bad_payload") from error
    if kind is Kind.BYTES:
        return Payload(kind, payload[1:])
    if kind is Kind.MESSAGE:
        return _message(payload)
    if len(payload) != 1:
        raise InvalidInputError(f"data after {kind.name}", reason="bad_payload")
    return Payload(kind)


def _message(payload: bytes) -> Payload:
    end = 2 + (payload[1] if len(payload) > 1 else 0)
    try:
        message_type = BY_NAME[payload[2:end].decode("ascii")]
    except (KeyError, UnicodeDecodeError) as error:
        raise InvalidInputError("a message of a type that is not known", reason="bad_payload") from error
    try:
        return Payload(Kind.MESSAGE, decode_body(message_type.model, payload[end:]), message_type)
    except TocsinError as error:
        raise InvalidInputError(str(error)[:300], reason="bad_body") from error
