"""The envelope's bytes: the one codec, without keys and without a clock.

    envelope = [1, content: bin, key_id: bin(32), proof]
    proof    = [alg, signature: bin, index, size, [path: bin(32) ...]]
    content  = [id, type, priority, sender, audience, issued_at, ttl_ms, correlation, trace, sealed, body]

``docs/reference/envelope.md`` is the specification. Decoding never allocates in proportion to a number in
the input, and any bytes become a value or an :class:`~tocsin.contracts.errors.InvalidInputError`.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any, NamedTuple, TypeVar

import msgpack
from pydantic import ValidationError

from tocsin.contracts.base import Message
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.identifiers import Priority
from tocsin.crypto import Algorithm, Proof, leaf_hash

VERSION = 1
MAX_ARRAY = 16
"""Longest array in an envelope's own structure: content has 11 fields, a path at most 10 nodes."""
WALK_ABOVE = 1024
"""Bytes of a value with long arrays that are walked over before they are decoded. Below it the worst nesting of
claimed lengths allocates 3 MB for a millisecond."""
ID_BYTES = 16
DIGEST_BYTES = 32
MAX_I64 = 2**63 - 1

B = TypeVar("B", bound=Message)


class Content(NamedTuple):
    """What is signed. Times in nanoseconds since the epoch, UTC."""

    id: bytes
    type: str
    priority: int
    sender: str
    audience: str
    issued_at: int
    ttl_ms: int
    correlation: bytes | None
    trace: str | None
    sealed: int
    body: bytes


class Envelope(NamedTuple):
    """A decoded envelope; nothing in it is proven until it has been opened."""

    content: Content
    content_bytes: bytes
    key_id: bytes
    proof: Proof
    leaf: bytes
    """Leaf hash of the content: names these bytes and no others."""


_FIELDS: tuple[tuple[str, type, int, bool], ...] = (
    # name, exact type, largest length or value, whether it may be nil
    ("id", bytes, ID_BYTES, False),
    ("type", str, 64, False),
    ("priority", int, 3, False),
    ("sender", str, 512, False),
    ("audience", str, 160, False),
    ("issued_at", int, MAX_I64, False),
    ("ttl_ms", int, MAX_I64, False),
    ("correlation", bytes, ID_BYTES, True),
    ("trace", str, 128, True),
    ("sealed", int, 1, False),
    ("body", bytes, 2**31, False),
)


_packer = threading.local()
"""A packer for each thread: to make one takes longer than to pack an envelope with it."""


def _pack(value: object) -> bytes:
    try:
        pack = _packer.pack
    except AttributeError:
        pack = _packer.pack = msgpack.Packer().pack
    return bytes(pack(value))


def malformed(detail: str) -> InvalidInputError:
    """Build the one error for bytes that are no envelope."""
    return InvalidInputError(f"malformed envelope: {detail}", reason="malformed")


def unpack(data: bytes, *, max_array: int, max_map: int = 0) -> Any:
    """Decode one msgpack value under limits.

    Raises:
        InvalidInputError: ``malformed``, whatever was wrong.
    """
    try:
        if max_array > MAX_ARRAY and len(data) > WALK_ABOVE:
            # The decoder allocates what a header claims, level by level: 60 ms and 68 MB for 256 KB of nested
            # headers. Walking over the value first allocates nothing, and ends where the bytes do.
            walk = msgpack.Unpacker(max_buffer_size=max(len(data), 1))
            walk.feed(data)
            walk.skip()
        return msgpack.unpackb(
            data,
            raw=False,
            use_list=False,
            max_ext_len=0,
            max_array_len=max_array,
            max_map_len=max_map,
            max_bin_len=len(data),
            max_str_len=len(data),
        )
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise malformed(type(error).__name__) from error


def encode_content(content: Content) -> bytes:
    """Return the content's bytes: what is signed."""
    return _pack(tuple(content))


def content_head(content_bytes: bytes, body: bytes) -> bytes:
    """Return the content's bytes before its body, which a sealed body is bound to. The body comes last.

    A body's header is the shortest of msgpack's; were it a longer one, the head would not be the one that the
    sender sealed under, and the body would not open.
    """
    header = 2 if len(body) < 1 << 8 else 3 if len(body) < 1 << 16 else 5
    return content_bytes[: len(content_bytes) - len(body) - header]


def decode_content(data: bytes) -> Content:
    """Decode the content and check every field's type and bounds."""
    fields: Any = unpack(data, max_array=MAX_ARRAY)
    if type(fields) is not tuple or len(fields) != len(_FIELDS):
        raise malformed("content is no array of 11")
    for value, (name, kind, limit, optional) in zip(fields, _FIELDS, strict=True):
        # `type(x) is int` on purpose: a bool is an int to isinstance.
        if type(value) is not kind:
            if optional and value is None:
                continue
            raise malformed(f"{name} has the wrong type")
        size: int = value if kind is int else len(value)  # type: ignore[assignment,arg-type]  # of type kind
        if not 0 <= size <= limit:
            raise malformed(f"{name} is out of bounds")
    content = Content._make(fields)
    if len(content.id) != ID_BYTES or (
        content.correlation is not None and len(content.correlation) != ID_BYTES
    ):
        raise malformed("an id is not 16 bytes")
    return content


def encode_envelope(content_bytes: bytes, key_id: bytes, proof: Proof) -> bytes:
    """Return the bytes that travel."""
    return _pack(
        (
            VERSION,
            content_bytes,
            key_id,
            (int(proof.algorithm), proof.signature, proof.index, proof.size, proof.path),
        )
    )


def decode_envelope(data: bytes, *, max_bytes: int) -> Envelope:
    """Steps 1 to 3 of opening: size, version, shape and types of every field.

    Raises:
        InvalidInputError: ``too_large``, ``bad_version`` or ``malformed``.
    """
    if len(data) > max_bytes:
        raise InvalidInputError(f"envelope of {len(data)} bytes, limit {max_bytes}", reason="too_large")
    outer = unpack(data, max_array=MAX_ARRAY)
    if type(outer) is not tuple or not outer or type(outer[0]) is not int:
        raise malformed("no array that begins with a version")
    if outer[0] != VERSION:
        raise InvalidInputError(f"envelope version {outer[0]}, this is {VERSION}", reason="bad_version")
    if len(outer) != 4 or type(outer[1]) is not bytes or type(outer[2]) is not bytes:
        raise malformed("no [version, content, key_id, proof]")
    if len(outer[2]) != DIGEST_BYTES:
        raise malformed("key_id is not 32 bytes")
    return Envelope(
        content=decode_content(outer[1]),
        content_bytes=outer[1],
        key_id=outer[2],
        proof=_decode_proof(outer[3]),
        leaf=leaf_hash(outer[1]),
    )


def _decode_proof(value: Any) -> Proof:
    if type(value) is not tuple or len(value) != 5:
        raise malformed("proof is no array of 5")
    algorithm, signature, index, size, path = value
    if type(algorithm) is not int or type(signature) is not bytes or type(path) is not tuple:
        raise malformed("proof has a field of the wrong type")
    if type(index) is not int or type(size) is not int or not (0 <= index <= 2**32 and 0 <= size <= 2**32):
        raise malformed("proof index or size")
    for node in path:
        if type(node) is not bytes or len(node) != DIGEST_BYTES:
            raise malformed("proof path")
    try:
        known = Algorithm(algorithm)
    except ValueError as error:
        raise malformed("unknown signature algorithm") from error
    return Proof(algorithm=known, signature=signature, index=index, size=size, path=path)


def encode_body(message: Message) -> bytes:
    """Return the msgpack map of a model."""
    return _pack(message.model_dump(mode="python"))


def decode_body(model: type[B], data: bytes) -> B:
    """Validate a body against its model.

    Raises:
        InvalidInputError: ``bad_body``; the message names the first fields that are wrong, not their values.
    """
    limit = max(len(data), 1)
    fields = unpack(data, max_array=limit, max_map=limit)
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        places = [
            ".".join(map(str, e["loc"])) + ": " + e["type"] for e in error.errors(include_input=False)[:3]
        ]
        raise InvalidInputError(f"{model.__name__}: {'; '.join(places)}"[:300], reason="bad_body") from error
    except RecursionError as error:
        raise malformed("body nests too deep") from error


def uuid7(now_ns: int | None = None) -> bytes:
    """Return a UUIDv7 (RFC 9562 section 5.7): 48 bits of milliseconds, the rest random."""
    milliseconds = (time.time_ns() if now_ns is None else now_ns) // 1_000_000
    value = bytearray(milliseconds.to_bytes(6, "big") + os.urandom(10))
    value[6] = 0x70 | (value[6] & 0x0F)
    value[8] = 0x80 | (value[8] & 0x3F)
    return bytes(value)


def make_content(
    *,
    type_name: str,
    sender: str,
    audience: str,
    body: bytes,
    now_ns: int,
    ttl_ms: int,
    priority: Priority = Priority.NORMAL,
    correlation: bytes | None = None,
    trace: str | None = None,
) -> Content:
    """Build the content of a new message."""
    return Content(
        uuid7(now_ns), type_name, int(priority), sender, audience, now_ns, ttl_ms, correlation, trace, 0, body
    )
