"""Ask named endpoints which TLS they speak: the network's side of the inventory.

Only endpoints that the operator named are connected to: no port is tried that was not given, no name is looked up
but theirs. To each go at most three connections, one after the other, and no byte of payload:

1. a ClientHello that offers TLS 1.3 and 1.2, hybrids with ML-KEM among its groups, and no key: the answer names
   version, cipher and group (:mod:`tocsin.analysis.inventory.tls`);
2. a ClientHello of TLS 1.1, to learn whether an old version is still accepted;
3. for TLS 1.3, whose certificates are encrypted, a handshake by Python's ssl that is given up once the
   certificate is there. The certificate is not verified: this is an inventory, and nothing is sent.

Python's ssl cannot do the first step: the group of a session is not to be had from it in Python 3.11 to 3.14
(``SSLSocket.group()`` comes with 3.15), and which groups it offers depends on the OpenSSL that it was built with.

Bounds: endpoints, connections at once, connections a second, seconds and bytes of each.
"""

from __future__ import annotations

import asyncio
import os
import re
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from tocsin.analysis.inventory.model import Certificate, Variant
from tocsin.analysis.inventory.tls import Answer, AnswerReader, client_hello
from tocsin.analysis.inventory.x509 import read_certificate
from tocsin.contracts.errors import InvalidInputError, TocsinError, UnavailableError

MAX_TARGETS = 1024
CONCURRENCY = 8
CONNECTIONS_PER_S = 20.0
TIMEOUT_S = 5.0
MAX_CHAIN = 8
_READ_BYTES = 8192
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
_MODERN, _OLD = (0x0304, 0x0303), (0x0302,)


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """An endpoint that the operator named."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def server_name(self) -> str | None:
        """The name for SNI; None for an address."""
        return None if _is_address(self.host) else self.host


@dataclass(frozen=True, slots=True)
class Probed:
    """What an endpoint answered, or why not."""

    target: Target
    at_s: float
    address: str = ""
    """That the connection went to."""
    variants: tuple[Variant, ...] = ()
    """What it chose for a modern client; and for an old one, if it still serves those."""
    certificates: tuple[Certificate, ...] = ()
    problem: str = ""
    """Reason code if the key exchange, or only the certificate, could not be learnt."""
    detail: str = ""


def parse_target(text: str) -> Target:
    """Read ``host:port`` or ``[IPv6]:port``.

    Raises:
        InvalidInputError: ``bad_endpoint``.
    """
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if bracketed else host
    number = int(port) if re.fullmatch(r"[0-9]{1,5}", port) else 0
    named = _NAME.fullmatch(bare) is not None and not bracketed
    fits = bracketed == (":" in bare) if _is_address(bare) else named
    if not colon or not fits or not 0 < number < 65_536:
        raise InvalidInputError(
            f"{text[:80]!r} is no endpoint",
            reason="bad_endpoint",
            advice="host:port, or [address]:port for IPv6",
        )
    return Target(bare, number)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


async def probe(
    targets: Sequence[Target],
    *,
    now_s: Callable[[], float],
    concurrency: int = CONCURRENCY,
    connections_per_s: float = CONNECTIONS_PER_S,
    timeout_s: float = TIMEOUT_S,
) -> tuple[Probed, ...]:
    """Ask all targets, each once; an endpoint that is away or hostile costs its seconds and nothing else.

    Args:
        targets: Repeated ones are asked once.
        now_s: Seconds since the epoch.
        concurrency: Endpoints that are asked at once.
        connections_per_s: Connections that are begun a second, all together.
        timeout_s: Of each connection, from its beginning to its answer.

    Returns:
        One result for each target, sorted by target.

    Raises:
        InvalidInputError: ``too_many_endpoints``.
    """
    wanted = sorted(set(targets))
    if len(wanted) > MAX_TARGETS:
        raise InvalidInputError(f"{len(wanted)} endpoints, at most {MAX_TARGETS}", reason="too_many_endpoints")
    prober = _Prober(now_s, connections_per_s, timeout_s)
    room = asyncio.Semaphore(concurrency)

    async def one(target: Target) -> Probed:
        async with room:
            return await prober.ask(target)

    return tuple(await asyncio.gather(*map(one, wanted)))


class _Prober:
    """Asks single endpoints, at a common rate."""

    def __init__(self, now_s: Callable[[], float], connections_per_s: float, timeout_s: float) -> None:
        self._now_s = now_s
        self._pause_s = 1 / connections_per_s
        self._timeout_s = timeout_s
        self._next_s = 0.0

    async def ask(self, target: Target) -> Probed:
        at_s = self._now_s()
        try:
            address, modern = await self._hello(target, _MODERN)
        except TocsinError as error:
            return Probed(target, at_s, problem=error.reason, detail=str(error))
        old = await self._old(target)
        answers = [one for one in (modern, old) if one is not None and one.alert is None]
        if not answers:
            detail = f"it refuses every version from TLS 1.0 to 1.3: alert {modern.alert}"
            return Probed(target, at_s, address, problem="refused", detail=detail)
        problem = detail = ""
        certificates: tuple[Certificate, ...] = ()
        try:
            if answers[0].version == "TLSv1.3":
                certificates = await self._certificates(target)
            else:
                certificates = tuple(map(read_certificate, answers[0].certificates[:MAX_CHAIN]))
        except TocsinError as error:
            problem, detail = error.reason, str(error)
        variants = tuple(dict.fromkeys(Variant(one.version, one.suite, one.group) for one in answers))
        return Probed(target, at_s, address, variants, certificates, problem, detail)

    async def _old(self, target: Target) -> Answer | None:
        """Return the answer to an old client; None where it gets none, which is how servers refuse, too."""
        try:
            _, answer = await self._hello(target, _OLD)
        except TocsinError:
            return None
        return answer

    async def _turn(self) -> None:
        """Wait for one's turn, so that no more connections than allowed begin in a second."""
        clock = asyncio.get_running_loop().time
        turn_s = max(self._next_s, clock())
        self._next_s = turn_s + self._pause_s
        await asyncio.sleep(turn_s - clock())

    async def _hello(self, target: Target, versions: tuple[int, ...]) -> tuple[str, Answer]:
        """Return the address that answered a hello, and its answer.

        Raises:
            UnavailableError: ``unreachable``, ``timeout``, ``closed``.
            InvalidInputError: it does not speak TLS (reasons of AnswerReader).
        """
        await self._turn()
        hello = client_hello(target.server_name, os.urandom(64), versions)
        try:
            async with asyncio.timeout(self._timeout_s):
                reader, writer = await asyncio.open_connection(target.host, target.port)
                try:
                    address = str(writer.get_extra_info("peername")[0])
                    writer.write(hello)
                    return address, await _answer(reader, target)
                finally:
                    writer.transport.abort()
        except TimeoutError:
            raise UnavailableError(f"{target} did not answer in time", reason="timeout") from None
        except (OSError, UnicodeError) as error:
            raise _unreachable(target, error) from error

    async def _certificates(self, target: Target) -> tuple[Certificate, ...]:
        """Return the certificates that a server of TLS 1.3 shows: all from Python 3.13 on, else the leaf.

        Raises:
            UnavailableError: ``unreachable``, ``timeout``, ``no_handshake``.
            InvalidInputError: ``bad_certificate``.
        """
        await self._turn()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # looked at, not trusted: nothing is sent on this connection
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            async with asyncio.timeout(self._timeout_s):
                _, writer = await asyncio.open_connection(
                    target.host, target.port, ssl=context, server_hostname=target.host
                )
                try:
                    return tuple(map(read_certificate, _chain(writer.get_extra_info("ssl_object"))))
                finally:
                    writer.transport.abort()
        except TimeoutError:
            raise UnavailableError(f"{target} did not finish its handshake in time", reason="timeout") from None
        except ssl.SSLError as error:
            reason = f"{target} does not finish a handshake with {ssl.OPENSSL_VERSION}: {error.reason}"
            raise UnavailableError(reason, reason="no_handshake") from error
        except (OSError, UnicodeError) as error:
            raise _unreachable(target, error) from error


async def _answer(reader: asyncio.StreamReader, target: Target) -> Answer:
    answers = AnswerReader()
    while data := await reader.read(_READ_BYTES):
        answer = answers.feed(data)
        if answer is not None:
            return answer
    raise UnavailableError(f"{target} closed the connection without an answer", reason="closed")


def _chain(session: ssl.SSLObject) -> list[bytes]:
    shown = getattr(session, "get_unverified_chain", None)
    if shown is not None:
        return list(shown()[:MAX_CHAIN])
    leaf = session.getpeercert(binary_form=True)
    return [leaf] if leaf else []


def _unreachable(target: Target, error: OSError | UnicodeError) -> UnavailableError:
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return UnavailableError(f"{target}: {why[:160]}", reason="unreachable")
