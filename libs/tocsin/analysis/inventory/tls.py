"""A ClientHello, and what a server's first answer says of its key exchange. Bytes in, values out: no I/O.

The hello offers groups but no key share (RFC 8446 section 4.2.8 allows an empty list), so that a server of
TLS 1.3 names the group that it prefers in a HelloRetryRequest, hybrids with ML-KEM included, before a key
or a byte of payload was sent. A server of TLS 1.2 or older answers with its certificates and, for ephemeral
Diffie-Hellman, with its group, in the clear.

    reader = AnswerReader()
    answer = reader.feed(received)      # None: more bytes are needed
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from tocsin.analysis.inventory.codes import (
    HELLO_RETRY_REQUEST,
    OFFERED_GROUPS,
    SIGNATURE_SCHEMES,
    SUITES,
    group_name,
    suite_name,
    version_name,
)
from tocsin.contracts.errors import InvalidInputError

MAX_ANSWER_BYTES = 96 * 1024
"""Of one answer. Certificate chains on the web are below 10 kB; post-quantum ones some 30 kB."""
MAX_CERTIFICATES = 16
_MAX_RECORD_BYTES = 16_384
"""RFC 8446 section 5.1: a plaintext fragment is at most 2^14 bytes."""

_ALERT, _HANDSHAKE, _CHANGE_CIPHER_SPEC = 21, 22, 20
_SERVER_HELLO, _CERTIFICATE, _SERVER_KEY_EXCHANGE, _SERVER_HELLO_DONE = 2, 11, 12, 14
_SERVER_NAME, _SUPPORTED_GROUPS, _POINT_FORMATS, _SIGNATURES = 0, 10, 11, 13
_EXTENDED_MASTER_SECRET, _SUPPORTED_VERSIONS, _KEY_SHARE, _RENEGOTIATION = 23, 43, 51, 0xFF01
_TLS12, _TLS13 = 0x0303, 0x0304
_NAMED_CURVE = 3


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server chose, or the alert by which it refused."""

    version: str = ""
    suite: str = ""
    group: str = ""
    """Empty where the answer names none, e.g. for RSA key transport."""
    certificates: tuple[bytes, ...] = ()
    """DER, leaf first; of TLS 1.3 they are encrypted, hence none."""
    alert: int | None = None
    """Alert description (RFC 8446 section 6) instead of a choice."""


def client_hello(
    server_name: str | None, nonce: bytes, versions: Sequence[int], groups: Sequence[int] = OFFERED_GROUPS
) -> bytes:
    """Build the record of a ClientHello.

    Args:
        server_name: ASCII host name for SNI; None for an address.
        nonce: 64 random bytes: the hello's random and its session id.
        versions: Versions to offer, e.g. ``(0x0304, 0x0303)``; without TLS 1.3 the highest is the hello's own.
        groups: Groups to offer, best first.

    Raises:
        InvalidInputError: ``bad_hello``: a name, nonce, version or group that no hello can carry.
    """
    if len(nonce) != 64 or not versions or not set(versions) <= {0x0300, 0x0301, 0x0302, _TLS12, _TLS13}:
        raise InvalidInputError("a hello needs 64 bytes and versions of TLS", reason="bad_hello")
    if not groups or len(groups) > 64 or not all(0 < group < 0x10000 for group in groups):
        raise InvalidInputError("a hello needs 1 to 64 groups", reason="bad_hello")
    modern = _TLS13 in versions
    suites = [code for code in SUITES if modern or code >> 8 != 0x13]
    extensions = [
        (_SUPPORTED_GROUPS, _vector2(b"".join(map(_u16, groups)))),
        (_POINT_FORMATS, b"\x01\x00"),
        (_SIGNATURES, _vector2(b"".join(map(_u16, SIGNATURE_SCHEMES)))),
        (_EXTENDED_MASTER_SECRET, b""),
        (_RENEGOTIATION, b"\x00"),
    ]
    if server_name is not None:
        extensions.insert(0, (_SERVER_NAME, _server_name(server_name)))
    if modern:
        offered = b"".join(map(_u16, sorted(versions, reverse=True)))
        extensions += [(_SUPPORTED_VERSIONS, bytes([len(offered)]) + offered), (_KEY_SHARE, b"\x00\x00")]
    body = b"".join(
        (
            _u16(min(max(versions), _TLS12)),
            nonce[:32],
            bytes([32]) + nonce[32:],
            _vector2(b"".join(map(_u16, suites))),
            b"\x01\x00",  # no compression
            _vector2(b"".join(_u16(kind) + _vector2(data) for kind, data in extensions)),
        )
    )
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    # RFC 8446 section 5.1: the record of a first hello says 0x0301, for servers that choke on more.
    return bytes([_HANDSHAKE]) + _u16(min(max(versions), 0x0301)) + _vector2(message)


def _server_name(name: str) -> bytes:
    try:
        raw = name.encode("ascii")
    except UnicodeEncodeError:
        raw = b""
    if not 0 < len(raw) <= 255:
        raise InvalidInputError(f"{name[:80]!r} is no host name", reason="bad_hello")
    return _vector2(b"\x00" + _vector2(raw))


def _u16(value: int) -> bytes:
    return value.to_bytes(2, "big")


def _vector2(data: bytes) -> bytes:
    return _u16(len(data)) + data


class AnswerReader:
    """Takes a server's bytes as they come; holds at most MAX_ANSWER_BYTES; linear in what it is fed."""

    def __init__(self) -> None:
        self._taken = 0
        self._records = bytearray()
        self._messages = bytearray()
        self._hello: _Hello | None = None
        self._group = ""
        self._certificates: tuple[bytes, ...] = ()

    def feed(self, data: bytes) -> Answer | None:
        """Take bytes; return the answer once it is complete, None while it is not.

        Raises:
            InvalidInputError: ``not_tls``, ``bad_record``, ``bad_handshake``, ``answer_too_long``.
        """
        self._taken += len(data)
        if self._taken > MAX_ANSWER_BYTES:
            raise InvalidInputError(
                f"an answer of more than {MAX_ANSWER_BYTES} bytes", reason="answer_too_long"
            )
        self._records += data
        while (record := self._next_record()) is not None:
            kind, fragment = record
            if kind == _ALERT:
                if len(fragment) != 2:
                    raise InvalidInputError("an alert of another length than 2", reason="bad_record")
                if fragment[0] == 1:  # a warning, e.g. unrecognized_name: the handshake goes on
                    continue
                return Answer(alert=fragment[1])
            if kind == _HANDSHAKE:
                self._messages += fragment
                answer = self._take_messages()
                if answer is not None:
                    return answer
        return None

    def _next_record(self) -> tuple[int, bytes] | None:
        held = self._records
        if held and held[0] not in {_ALERT, _HANDSHAKE, _CHANGE_CIPHER_SPEC}:
            raise InvalidInputError("the answer is not TLS", reason="not_tls")
        if len(held) > 1 and held[1] != 3:
            raise InvalidInputError("the answer is not TLS", reason="not_tls")
        if len(held) < 5:
            return None
        length = int.from_bytes(held[3:5], "big")
        if not 0 < length <= _MAX_RECORD_BYTES:
            raise InvalidInputError(f"a record of {length} bytes", reason="bad_record")
        if len(held) < 5 + length:
            return None
        record = held[0], bytes(held[5 : 5 + length])
        del held[: 5 + length]
        return record

    def _take_messages(self) -> Answer | None:
        while len(self._messages) >= 4:
            length = int.from_bytes(self._messages[1:4], "big")
            if length > MAX_ANSWER_BYTES:
                raise InvalidInputError(f"a message of {length} bytes", reason="bad_handshake")
            if len(self._messages) < 4 + length:
                return None
            kind, body = self._messages[0], bytes(self._messages[4 : 4 + length])
            del self._messages[: 4 + length]
            try:
                answer = self._take_message(kind, _Cursor(body))
            except struct.error:
                raise InvalidInputError(f"a cut message of type {kind}", reason="bad_handshake") from None
            if answer is not None:
                return answer
        return None

    def _take_message(self, kind: int, body: _Cursor) -> Answer | None:
        if self._hello is None:
            if kind != _SERVER_HELLO:
                raise InvalidInputError(f"a message of type {kind} before the hello", reason="bad_handshake")
            self._hello = _read_hello(body)
            return self._answer() if self._hello.version >= _TLS13 else None
        if kind == _CERTIFICATE:
            self._certificates = _read_certificates(body)
        elif kind == _SERVER_KEY_EXCHANGE:
            self._group = _read_group(body, suite_name(self._hello.suite))
        elif kind == _SERVER_HELLO_DONE:
            return self._answer()
        return None

    def _answer(self) -> Answer | None:
        hello = self._hello
        if hello is None:
            return None
        group = group_name(hello.group) if hello.group else self._group
        return Answer(version_name(hello.version), suite_name(hello.suite), group, self._certificates)


@dataclass(frozen=True, slots=True)
class _Hello:
    version: int
    suite: int
    group: int
    """0 where it names none."""


class _Cursor:
    """Reads a message from its start; what is not there is a ``struct.error``."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise struct.error
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, octets: int) -> int:
        return int.from_bytes(self.take(octets), "big")

    def vector(self, octets: int) -> _Cursor:
        return _Cursor(self.take(self.number(octets)))

    def rest(self) -> bytes:
        return self.take(self.left)


def _read_hello(body: _Cursor) -> _Hello:
    version = body.number(2)
    retry = body.take(32) == HELLO_RETRY_REQUEST
    body.vector(1)
    suite = body.number(2)
    body.take(1)
    group = 0
    extensions = body.vector(2) if body.left else _Cursor(b"")
    while extensions.left:
        kind, data = extensions.number(2), extensions.vector(2)
        if kind == _SUPPORTED_VERSIONS:
            version = data.number(2)
        elif kind == _KEY_SHARE:
            group = data.number(2)
    if retry and version < _TLS13:
        raise InvalidInputError("a HelloRetryRequest of an old version", reason="bad_handshake")
    if version not in {0x0300, 0x0301, 0x0302, _TLS12, _TLS13}:
        raise InvalidInputError(f"version {version:#06x} was not offered", reason="bad_handshake")
    return _Hello(version, suite, group)


def _read_certificates(body: _Cursor) -> tuple[bytes, ...]:
    chain = body.vector(3)
    certificates: list[bytes] = []
    while chain.left and len(certificates) < MAX_CERTIFICATES:
        certificates.append(chain.vector(3).rest())
    return tuple(certificates)


def _read_group(body: _Cursor, suite: str) -> str:
    """Return the group of a ServerKeyExchange (RFC 8422 section 5.4, RFC 5246 section 7.4.3)."""
    if "_ECDHE_" in suite:
        return group_name(body.number(2)) if body.number(1) == _NAMED_CURVE else "explicit-curve"
    if "_DHE_" in suite:
        return f"ffdh-{int.from_bytes(body.vector(2).rest(), 'big').bit_length()}"
    return ""
