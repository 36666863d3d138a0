"""The webhook: another program carries out what was decided, and is told by HTTP.

    POST <url>
    Content-Type: application/openc2-cmd+json;version=1.0
    Idempotency-Key: <decision in hex>            (of the command that ends it: <decision in hex>.cancel)
    X-Tocsin-Signature: t=<seconds since the epoch>,v1=<HMAC-SHA-256 of "<t>." and the body, in hex>

The body is an OpenC2 command. The receiver compares the signature, refuses a ``t`` that is minutes away, acts once for
an idempotency key, and answers 200 with an OpenC2 response (or 204). Any other answer is a failure, and so is one that
comes too late; then the same request is sent again, ATTEMPTS times in all, if the receiver may yet do it (429, 5xx, no
answer). A redirection is never followed: what is signed is for this address. What has failed is undone by the guardian:
after a time-out nobody knows whether it was done.

HTTPS, or HTTP to this machine. The answer is read up to 64 KiB, and no longer than TIMEOUT_S. Proxies of the
environment are not used. Does not protect against a receiver that says it did and did not.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from tocsin.agent.actuators import Carried, VerifiedOrder
from tocsin.agent.openc2 import COMMAND_TYPE, MAX_BYTES, RESPONSE_TYPE, encode, parse_response
from tocsin.contracts.errors import DeniedError, InvalidInputError, TocsinError, UnavailableError
from tocsin.contracts.response import ActuationOutcome

try:
    import httpx
except ImportError as missing:
    raise UnavailableError(
        "the webhook actuator needs httpx", reason="no_httpx", advice="install tocsin[agents]"
    ) from missing

TIMEOUT_S = 5.0
"""Of an attempt, from the connection to the answer's last byte."""
ATTEMPTS = 3
FIRST_PAUSE_S = 0.5
"""Between attempts; it doubles."""
MIN_SECRET_BYTES = 32
"""As long as the hash: RFC 2104 section 3 discourages less."""
MAX_SECRET_BYTES = 4096


def read_secret(path: Path | None) -> bytes:
    """Read the key that requests are signed with; white space around it does not count.

    Raises:
        InvalidInputError: ``bad_secret``: shorter than 32 bytes, longer than 4,096, or readable by others.
        UnavailableError: ``no_secret``.
    """
    if path is None:
        raise InvalidInputError("the webhook needs a file with a secret", reason="bad_secret")
    try:
        with path.open("rb") as file:
            mode = path.stat().st_mode
            secret = file.read(MAX_SECRET_BYTES + 1).strip()
    except OSError as error:
        raise UnavailableError(f"{path}: {error.strerror}", reason="no_secret") from error
    if mode & 0o077:
        raise InvalidInputError(
            f"{path} can be read by others", reason="bad_secret", advice=f"chmod 600 {path}"
        )
    if not MIN_SECRET_BYTES <= len(secret) <= MAX_SECRET_BYTES:
        raise InvalidInputError(
            f"{path} holds {len(secret)} bytes, must be {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES}",
            reason="bad_secret",
            advice=f"openssl rand -hex 32 > {path}",
        )
    return secret


def signature(secret: bytes, at_s: int, body: bytes) -> str:
    """Return the value of X-Tocsin-Signature."""
    return f"t={at_s},v1={hmac.digest(secret, f'{at_s}.'.encode() + body, sha256).hex()}"


def check_url(url: str) -> str:
    """Return a URL that requests may go to.

    Raises:
        InvalidInputError: ``bad_webhook``: neither HTTPS nor HTTP to an address of the loopback.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise InvalidInputError(f"no address of a webhook: {url[:200]!r}", reason="bad_webhook") from error
    if parts.username or parts.fragment or not host or parts.scheme not in {"http", "https"}:
        raise InvalidInputError(f"no address of a webhook: {url[:200]!r}", reason="bad_webhook")
    if parts.scheme == "http" and not _is_loopback(host):
        raise InvalidInputError(f"a webhook at {host} needs https", reason="bad_webhook")
    return url


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False  # a name leads where its server says


class WebhookActuator:
    """Sends commands to one address."""

    name = "webhook"
    acts = True
    by_address = False

    def __init__(
        self, url: str, secret: bytes, *, timeout_s: float = TIMEOUT_S, first_pause_s: float = FIRST_PAUSE_S
    ) -> None:
        self._url = check_url(url)
        self._secret = secret
        self._timeout_s = timeout_s
        self._first_pause_s = first_pause_s

    async def apply(self, order: VerifiedOrder) -> Carried:
        """Send the command.

        Raises:
            UnavailableError: ``webhook_timed_out``, ``webhook_unreachable``, ``webhook_failed``.
            InvalidInputError: ``webhook_garbage``: an answer that is no OpenC2 response.
            DeniedError: ``webhook_refused``, ``webhook_redirected``.
        """
        return await self._send(order.openc2(), order.decision.hex())

    async def undo(self, order: VerifiedOrder) -> Carried:
        """Send the command that ends it; raises as :meth:`apply`."""
        return await self._send(order.cancel(), f"{order.decision.hex()}.cancel")

    async def query(self) -> frozenset[str] | None:
        """Nobody is asked: OpenC2 has no question for the commands that are in force."""
        return None

    async def _send(self, openc2: dict[str, object], key: str) -> Carried:
        body = encode(openc2)
        pause_s = self._first_pause_s
        for left in reversed(range(ATTEMPTS)):
            try:
                said = await self._attempt(body, key)
            except UnavailableError:
                if not left:
                    raise
                await asyncio.sleep(pause_s)
                pause_s *= 2
            else:
                return Carried(ActuationOutcome.DONE, f"{self._url} answered {said}"[:300])
        raise AssertionError("the last attempt returns or raises")

    async def _attempt(self, body: bytes, key: str) -> str:
        headers = {
            "Content-Type": COMMAND_TYPE,
            "Accept": RESPONSE_TYPE,
            "Idempotency-Key": key,
            "X-Tocsin-Signature": signature(self._secret, int(time.time()), body),
        }
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=self._timeout_s) as client,
                client.stream("POST", self._url, content=body, headers=headers) as answer,
            ):
                _check_code(answer.status_code)
                return _read(await _bounded(answer))
        except (TimeoutError, httpx.TimeoutException) as error:
            raise UnavailableError(
                f"{self._url} did not answer within {self._timeout_s:g} s", reason="webhook_timed_out"
            ) from error
        except httpx.DecodingError as error:
            raise InvalidInputError("an answer that cannot be decoded", reason="webhook_garbage") from error
        except (httpx.HTTPError, OSError) as error:
            raise UnavailableError(
                f"{self._url}: {type(error).__name__} {error}"[:300], reason="webhook_unreachable"
            ) from error


def _check_code(code: int) -> None:
    if 200 <= code < 300:
        return
    if 300 <= code < 400:
        raise DeniedError(f"HTTP {code}: redirections are not followed", reason="webhook_redirected")
    if code == 429 or code >= 500:
        raise UnavailableError(f"HTTP {code}", reason="webhook_failed")
    raise DeniedError(f"HTTP {code}", reason="webhook_refused")


async def _bounded(answer: httpx.Response) -> bytes:
    data = b""
    async for part in answer.aiter_bytes():
        data += part
        if len(data) > MAX_BYTES:
            raise InvalidInputError(f"an answer of more than {MAX_BYTES} bytes", reason="webhook_garbage")
    return data


def _read(data: bytes) -> str:
    """Return what an answer says, if it says that the command was carried out."""
    if not data.strip():
        return "without a word"
    try:
        said = parse_response(data)
    except TocsinError as error:
        raise InvalidInputError(f"an answer that is no OpenC2: {error}", reason="webhook_garbage") from error
    text = f"{int(said.status)} {said.status_text}".strip()[:200]
    if said.succeeded:
        return text
    if said.status >= 500 or said.status < 200:
        raise UnavailableError(text, reason="webhook_failed")
    raise DeniedError(text, reason="webhook_refused")
