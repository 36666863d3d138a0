"""What honeypots say: the opening of seven services, as far as a failed login.

Each dialogue is a little machine without I/O: it greets, is fed what the client sends, and answers. Nobody
ever gets in, nothing that is sent is ever executed, and any bytes are an answer or the end, never an
error. A dialogue ends after MAX_LOGINS failed logins, MAX_LINES lines or one line that is too long.

What gives them away: SSH stops before its key exchange (so that a guess is seen as a connection, not as a
login), banners are fixed, and no service does anything but refuse.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

MAX_LOGINS = 3
"""Failed logins in one connection: what login(1) and vsftpd allow by default."""
MAX_LINES = 32
MAX_LINE_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Login:
    """A login that was tried; its fields are never printed."""

    user: bytes = field(repr=False)
    guess: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Turn:
    """A dialogue's answer."""

    reply: bytes = b""
    logins: tuple[Login, ...] = ()
    done: bool = False


class Dialogue(Protocol):
    """One connection's conversation."""

    def greet(self) -> bytes:
        """Return what is said first; empty where the client begins."""

    def feed(self, data: bytes) -> Turn:
        """Take what the client sent, in whatever pieces it comes."""


class _Lines:
    """Base of dialogues by lines: cuts the input, counts, and ends."""

    greeting = b""

    def __init__(self) -> None:
        self._held = b""
        self._lines = 0
        self._logins = 0

    def greet(self) -> bytes:
        """Return the banner."""
        return self.greeting

    def feed(self, data: bytes) -> Turn:
        """Answer each line that is complete."""
        self._held += data
        reply = b""
        logins: list[Login] = []
        while b"\n" in self._held:
            line, self._held = self._held.split(b"\n", 1)
            self._lines += 1
            turn = self._line(line.rstrip(b"\r"))
            reply += turn.reply
            logins += turn.logins
            self._logins += len(turn.logins)
            if turn.done or self._logins >= MAX_LOGINS or self._lines >= MAX_LINES:
                return Turn(reply, tuple(logins), done=True)
        return Turn(reply, tuple(logins), done=len(self._held) > MAX_LINE_BYTES)

    def _line(self, line: bytes) -> Turn:
        raise NotImplementedError


class Ssh(_Lines):
    """SSH up to the identification strings (RFC 4253 section 4.2)."""

    greeting = b"SSH-2.0-OpenSSH_9.6p1 Ubuntu-3ubuntu13.5\r\n"

    def __init__(self) -> None:
        super().__init__()
        self._identified = False

    def feed(self, data: bytes) -> Turn:
        """Take the client's identification, and end when it goes on: here a key exchange would begin."""
        turn = super().feed(data)
        return Turn(turn.reply, done=turn.done or (self._identified and bool(self._held)))

    def _line(self, line: bytes) -> Turn:
        if self._identified:
            return Turn(done=True)
        if not line.startswith(b"SSH-"):
            return Turn(b"Invalid SSH identification string.\r\n", done=True)
        self._identified = True
        return Turn()


class Ftp(_Lines):
    """FTP as far as USER and PASS (RFC 959 section 4.1.1)."""

    greeting = b"220 (vsFTPd 3.0.5)\r\n"

    def __init__(self) -> None:
        super().__init__()
        self._user: bytes | None = None

    def _line(self, line: bytes) -> Turn:
        verb, _, rest = line.partition(b" ")
        match verb.upper():
            case b"USER":
                self._user = rest
                turn = Turn(b"331 Please specify the password.\r\n")
            case b"PASS" if self._user is not None:
                turn = Turn(b"530 Login incorrect.\r\n", (Login(self._user, rest),))
                self._user = None
            case b"PASS":
                turn = Turn(b"503 Login with USER first.\r\n")
            case b"QUIT":
                turn = Turn(b"221 Goodbye.\r\n", done=True)
            case _:
                turn = Turn(b"530 Please login with USER and PASS.\r\n")
        return turn


class Telnet(_Lines):
    """A Telnet login (RFC 854); option negotiation is ignored."""

    greeting = b"Ubuntu 24.04.1 LTS\r\nlogin: "
    _NEGOTIATION = re.compile(rb"\xff\xfa.*?\xff\xf0|\xff[\xfb-\xfe].|\xff[\xf0-\xf9]", re.DOTALL)

    def __init__(self) -> None:
        super().__init__()
        self._user: bytes | None = None

    def feed(self, data: bytes) -> Turn:
        """Answer each line; many clients end them by CR NUL (RFC 854)."""
        # Over what is held too: a negotiation or a line's end may come in pieces.
        self._held = self._NEGOTIATION.sub(b"", self._held + data).replace(b"\r\0", b"\n")
        return super().feed(b"")

    def _line(self, line: bytes) -> Turn:
        if self._user is None:
            self._user = line
            return Turn(b"Password: ")
        user, self._user = self._user, None
        return Turn(b"\r\nLogin incorrect\r\nlogin: ", (Login(user, line),))


class Smtp(_Lines):
    """SMTP as far as AUTH PLAIN and LOGIN (RFC 4954)."""

    greeting = b"220 mail ESMTP Postfix (Ubuntu)\r\n"

    def __init__(self) -> None:
        super().__init__()
        self._awaits: str | None = None
        self._user = b""

    def _line(self, line: bytes) -> Turn:
        if self._awaits is not None:
            return self._answer(self._awaits, _decoded(line))
        words = line.upper().split()
        match words[:2]:
            case [b"EHLO", *_]:
                turn = Turn(b"250-mail\r\n250-SIZE 10240000\r\n250 AUTH PLAIN LOGIN\r\n")
            case [b"HELO", *_]:
                turn = Turn(b"250 mail\r\n")
            case [b"AUTH", b"PLAIN"] if len(words) > 2:
                turn = self._answer("plain", _decoded(line.split()[2]))
            case [b"AUTH", b"PLAIN"]:
                self._awaits = "plain"
                turn = Turn(b"334 \r\n")
            case [b"AUTH", b"LOGIN"]:
                self._awaits = "user"
                turn = Turn(b"334 VXNlcm5hbWU6\r\n")
            case [b"QUIT", *_]:
                turn = Turn(b"221 2.0.0 Bye\r\n", done=True)
            case _:
                turn = Turn(b"530 5.7.0 Authentication required\r\n")
        return turn

    def _answer(self, awaited: str, value: bytes) -> Turn:
        self._awaits = None
        if awaited == "user":
            self._user, self._awaits = value, "guess"
            return Turn(b"334 UGFzc3dvcmQ6\r\n")
        user, guess = self._user, value
        if awaited == "plain":
            _, user, guess = (*value.split(b"\0"), b"", b"", b"")[:3]
        return Turn(b"535 5.7.8 Error: authentication failed\r\n", (Login(user, guess),))


class Http(_Lines):
    """One HTTP request, which must log in (RFC 7617, Basic)."""

    def __init__(self) -> None:
        super().__init__()
        self._login: tuple[Login, ...] = ()

    def _line(self, line: bytes) -> Turn:
        name, _, value = line.partition(b":")
        words = value.split()
        if name.strip().lower() == b"authorization" and len(words) == 2 and words[0].lower() == b"basic":
            user, _, guess = _decoded(words[1]).partition(b":")
            self._login = (Login(user, guess),)
        if line:
            return Turn()
        head = b"HTTP/1.1 401 Unauthorized\r\nServer: nginx/1.24.0 (Ubuntu)\r\n"
        rest = b'WWW-Authenticate: Basic realm="admin"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n'
        return Turn(head + rest, self._login, done=True)


class Mysql:
    """MySQL's first three packets: handshake (protocol version 10), the client's response, access denied."""

    _NONCE = b"p7Rk2XvQ", b"mC5dZt8WbNfH"
    """Of the password's scramble. Fixed: it protects nothing here, and what comes back is only hashed."""

    def __init__(self) -> None:
        self._held = b""

    def greet(self) -> bytes:
        """Return the handshake."""
        first, second = self._NONCE
        body = (
            b"\x0a8.0.36-0ubuntu0.24.04.1\0"  # protocol version, server version
            + (8).to_bytes(4, "little")  # connection id
            + first
            + b"\0"
            + b"\xff\xff"  # capabilities, low half
            + b"\x2d\x02\x00"  # utf8mb4; autocommit
            + b"\xff\xcf"  # capabilities, high half
            + bytes([len(first) + len(second) + 1])
            + bytes(10)
            + second
            + b"\0mysql_native_password\0"
        )
        return _mysql_packet(0, body)

    def feed(self, data: bytes) -> Turn:
        """Refuse the first packet, whatever it is."""
        self._held += data
        if len(self._held) < 4:
            return Turn()
        length = int.from_bytes(self._held[:3], "little")
        if length > MAX_LINE_BYTES:
            return Turn(done=True)
        if len(self._held) < 4 + length:
            return Turn()
        # HandshakeResponse41: capabilities 4, packet size 4, charset 1, filler 23, user NUL, length, scramble.
        user, _, rest = self._held[4 + 32 : 4 + length].partition(b"\0")
        scramble = rest[1 : 1 + rest[0]] if rest else b""
        denied = b"\xff" + (1045).to_bytes(2, "little") + b"#28000Access denied for user"
        return Turn(_mysql_packet(2, denied), (Login(user, scramble),), done=True)


class Redis:
    """Redis as far as AUTH: commands in RESP (an array of bulk strings) or in a line."""

    _MAX_WORDS = 16

    def __init__(self) -> None:
        self._held = b""
        self._logins = 0
        self._commands = 0

    def greet(self) -> bytes:
        """Say nothing: the client begins."""
        return b""

    def feed(self, data: bytes) -> Turn:
        """Answer each command that is complete."""
        self._held += data
        reply = b""
        logins: list[Login] = []
        while (command := self._next()) is not None:
            turn = self._answer(command)
            reply += turn.reply
            logins += turn.logins
            if turn.done:
                return Turn(reply, tuple(logins), done=True)
        return Turn(reply, tuple(logins), done=len(self._held) > MAX_LINE_BYTES)

    def _next(self) -> list[bytes] | None:
        """Cut the next command off; None if it is not complete, an empty one if it is no command."""
        line, end, rest = self._held.partition(b"\n")
        if not end:
            return None
        line = line.rstrip(b"\r")
        if line.startswith(b"*"):
            return self._array(_number(line[1:], self._MAX_WORDS), rest)
        self._held = rest
        return line.split()[: self._MAX_WORDS]

    def _array(self, count: int | None, rest: bytes) -> list[bytes] | None:
        words: list[bytes] = []
        for _ in range(count or 0):
            head, end, after = rest.partition(b"\n")
            length = _number(head.rstrip(b"\r")[1:], MAX_LINE_BYTES) if head.startswith(b"$") else None
            if not end or (length is not None and len(after) < length + 2):
                return None
            if length is None:
                words = []
                break
            words.append(after[:length])
            rest = after[length + 2 :]
        self._held = rest
        return words

    def _answer(self, words: list[bytes]) -> Turn:
        self._commands += 1
        last = self._commands >= MAX_LINES
        match [words[0].upper() if words else b"", *words[1:]]:
            case [b"AUTH", *given] if 1 <= len(given) <= 2:
                user, guess = (b"default", given[0]) if len(given) == 1 else (given[0], given[1])
                self._logins += 1
                refused = b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"
                return Turn(refused, (Login(user, guess),), done=last or self._logins >= MAX_LOGINS)
            case [b"QUIT", *_]:
                return Turn(b"+OK\r\n", done=True)
            case [b""]:
                return Turn(b"-ERR Protocol error\r\n", done=True)
            case _:
                return Turn(b"-NOAUTH Authentication required.\r\n", done=last)


def _number(text: bytes, most: int) -> int | None:
    value = int(text) if text.isdigit() and len(text) < 6 else -1
    return value if 0 <= value <= most else None


def _mysql_packet(sequence: int, body: bytes) -> bytes:
    return len(body).to_bytes(3, "little") + bytes([sequence]) + body


def _decoded(text: bytes) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return text


DIALOGUES: tuple[tuple[str, Callable[[], Dialogue]], ...] = (
    ("ssh", Ssh),
    ("ftp", Ftp),
    ("telnet", Telnet),
    ("smtp", Smtp),
    ("http", Http),
    ("mysql", Mysql),
    ("redis", Redis),
)
"""Dialogue by the name that Zeek gives the service."""
